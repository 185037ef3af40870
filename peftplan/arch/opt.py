"""OPT: learned positions counted from the mask, ReLU, norms before each part or (350m) after it.

Source: transformers 5.23 modeling_opt.py, configuration_opt.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftplan.arch.config import Config, activation
from peftplan.arch.masks import attention_mask
from peftplan.arch.rotary import cache_positions
from peftplan.specs.cache import cached_heads
from peftplan.specs.formats import INT64
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, LayerNorm, Linear, Module, Ops
from peftplan.specs.tensors import Tensor

POSITION_OFFSET = 2  # rows of the position table that no position uses


# mask, positions of the tokens, positions in the sequence
Given = tuple[Tensor | None, Tensor, Tensor | None]


@dataclass(frozen=True, slots=True)
class Shape:
    """An OPT's sizes and switches."""

    hidden: int
    heads: int
    inner: int
    embedded: int
    activation: str
    bias: bool
    affine: bool
    norm_before: bool
    dropout: float
    attn_dropout: float

    def norm(self) -> LayerNorm:
        """A LayerNorm as this model has them."""
        return LayerNorm(self.hidden, affine=self.affine)


class Attention(Module):
    """Self-attention with queries scaled before the kernel."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.heads, self.dropout = s.heads, s.attn_dropout
        self.k_proj = Linear(s.hidden, s.hidden, s.bias)
        self.v_proj = Linear(s.hidden, s.hidden, s.bias)
        self.q_proj = Linear(s.hidden, s.hidden, s.bias)
        self.out_proj = Linear(s.hidden, s.hidden, s.bias)
        self.caches = cached_heads(s.heads, s.hidden // s.heads, s.heads)

    def forward(self, t: Ops, x: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[override]
        batch, length, width = x.shape
        heads = (batch, self.heads, length, width // self.heads)
        q = t.call("q_proj", self.q_proj, x)
        if t.attention == "eager" or t.behaviour.scales_queries:
            q = t.mul_scalar(q)
        q = t.view(q, heads)
        k = t.view(t.call("k_proj", self.k_proj, x), heads)
        v = t.view(t.call("v_proj", self.v_proj, x), heads)
        out = t.view(t.attend(q, k, v, mask, self.dropout), x.shape)
        out = t.call("out_proj", self.out_proj, out)
        return out  # type: ignore[no-any-return]


class Block(Module):
    """Attention and two linears, each beside a residual, with its norm before or after."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.self_attn = Attention(s)
        self.self_attn_layer_norm = s.norm()
        self.fc1 = Linear(s.hidden, s.inner, s.bias)
        self.fc2 = Linear(s.inner, s.hidden, s.bias)
        self.final_layer_norm = s.norm()

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        s = self.s
        residual = x
        if s.norm_before:
            x = t.call("self_attn_layer_norm", self.self_attn_layer_norm, x)
        x = t.call("self_attn", self.self_attn, x, given[0])
        x = t.dropout(x, s.dropout)
        x = t.add(residual, x)
        if not s.norm_before:
            x = t.call("self_attn_layer_norm", self.self_attn_layer_norm, x)
        shape = x.shape
        x = t.view(x, (x.numel // shape[-1], shape[-1]))
        residual = x
        if s.norm_before:
            x = t.call("final_layer_norm", self.final_layer_norm, x)
        x = t.call("fc1", self.fc1, x)
        x = t.activation(x, s.activation)
        x = t.call("fc2", self.fc2, x)
        x = t.dropout(x, s.dropout)
        x = t.view(t.add(residual, x), shape)
        if not s.norm_before:
            x = t.call("final_layer_norm", self.final_layer_norm, x)
        return x


class Decoder(Module):
    """Tables, the projections where words are narrower than the model, and the last norm."""

    def __init__(self, s: Shape, vocab: int, positions: int, last_norm: bool) -> None:
        super().__init__()
        self.narrow = s.embedded != s.hidden
        self.embed_tokens = Embedding(vocab, s.embedded)
        self.embed_positions = Embedding(positions + POSITION_OFFSET, s.hidden)
        if self.narrow:
            self.project_out = Linear(s.hidden, s.embedded)
            self.project_in = Linear(s.embedded, s.hidden)
        self.final_layer_norm = s.norm() if last_norm else None


def positions_of_mask(t: Ops, ids: Tensor) -> Tensor:
    """cumsum(mask) * mask - 1, one position for every token of the batch."""
    shape, numel = ids.shape, ids.numel
    count = t.new(shape, numel, INT64, "cumsum")
    product = t.new(shape, numel, INT64, "mul")
    out: Tensor = t.new(shape, numel, INT64, "sub")
    del count, product
    return out


def shape(c: Config) -> Shape:
    """The sizes and switches of a config."""
    hidden, heads = c.size("hidden_size", 768), c.count("num_attention_heads", 12)
    c.divides("num_attention_heads", heads, "hidden_size", hidden)
    return Shape(
        hidden,
        heads,
        c.size("ffn_dim", 3072),
        c.size("word_embed_proj_dim", hidden),
        activation(c, "activation_function", "relu"),
        c.flag("enable_bias", True),
        c.flag("layer_norm_elementwise_affine", True),
        c.flag("do_layer_norm_before", True),
        c.probability("dropout", 0.1),
        c.probability("attention_dropout"),
    )


def build(c: Config) -> ModelSpec:
    """An OPT, from its config."""
    s = shape(c)
    vocab, positions = c.size("vocab_size", 50272), c.size("max_position_embeddings", 2048)
    stem, model = Module(), Module()
    decoder = Decoder(s, vocab, positions, s.norm_before and not c.flag("_remove_final_layer_norm"))
    head = Linear(s.embedded, vocab)
    if c.flag("tie_word_embeddings", True):
        head.weight = decoder.embed_tokens.weight
    model.add("decoder", decoder)
    stem.add("model", model)
    stem.add("lm_head", head)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, Given]:
        words = t.call("model.decoder.embed_tokens", decoder.embed_tokens, ids)
        steps = cache_positions(t, ids.shape[1])
        at = positions_of_mask(t, ids)
        mask = attention_mask(t, ids.shape[0], ids.shape[1], words.dtype)
        moved = t.new(at.shape, at.numel, INT64, "add")
        places = t.call("model.decoder.embed_positions", decoder.embed_positions, moved)
        del moved
        if decoder.narrow:
            words = t.call("model.decoder.project_in", decoder.project_in, words)
        t.keep(words, places)
        return t.add(words, places), (mask, at, steps)

    def leave(t: Ops, x: Tensor) -> Tensor:
        if decoder.final_layer_norm is not None:
            x = t.call("model.decoder.final_layer_norm", decoder.final_layer_norm, x)
        if decoder.narrow:
            x = t.call("model.decoder.project_out", decoder.project_out, x)
        return x

    spec = ModelSpec(
        family="opt",
        stem=stem,
        runs=[BlockRun(Block(s), c.count("num_hidden_layers", 12), 0, "model.decoder.layers")],
        enter=enter,
        leave=leave,
        head=head,
        head_path="lm_head",
        vocab_size=vocab,
        max_seq_len=positions,
        attention_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
        mlp_targets=("fc1", "fc2"),
        keeps_first_input=False,
    )
    if c.probability("layerdrop"):
        spec.notes.append("layerdrop: the figures are those of a step that drops no layer")
    return spec
