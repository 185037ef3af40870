"""GPT-J: rotary positions looked up from a table in every block, attention written out in fp32.

Source: transformers 5.23 modeling_gptj.py, configuration_gptj.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftplan.arch.config import Config, activation, alias
from peftplan.arch.masks import attention_mask
from peftplan.arch.rotary import position_ids, rotate_half
from peftplan.specs.cache import cached_heads
from peftplan.specs.formats import FP32, INT64, DType
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, LayerNorm, Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor

# mask, position ids
Given = tuple[Tensor | None, Tensor]


@dataclass(frozen=True, slots=True)
class Shape:
    """A GPT-J's sizes and dropout probabilities."""

    hidden: int
    heads: int
    inner: int
    rotary: int
    positions: int
    activation: str
    resid_dropout: float
    attn_dropout: float


def rotate_pairs(t: Ops, x: Tensor, length: int) -> Tensor:
    """Neighbouring dimensions rotated together; sines and cosines are repeated for both of a pair."""
    wide = (1, length, 1, x.shape[-1])
    sin = t.new(wide, length * x.shape[-1], x.dtype, "clone")
    cos = t.new(wide, length * x.shape[-1], x.dtype, "clone")
    return t.add(t.mul(x, cos), t.mul(rotate_half(t, x), sin))  # type: ignore[no-any-return]


class Attention(Module):
    """Self-attention, the table of its positions in a buffer of its own."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.k_proj = Linear(s.hidden, s.hidden)
        self.v_proj = Linear(s.hidden, s.hidden)
        self.q_proj = Linear(s.hidden, s.hidden)
        self.out_proj = Linear(s.hidden, s.hidden)
        self.embed_positions = Parameter((s.positions, s.rotary), FP32, role="buffer")
        self.caches = cached_heads(s.heads, s.hidden // s.heads, s.heads)

    def forward(self, t: Ops, x: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[override]
        s = self.s
        batch, length, _ = x.shape
        whole = (batch, length, s.heads, s.hidden // s.heads)
        q = t.view(t.call("q_proj", self.q_proj, x), whole)
        k = t.view(t.call("k_proj", self.k_proj, x), whole)
        v = t.view(t.call("v_proj", self.v_proj, x), whole)
        looked_up = self.look_up(t, length, k.dtype)
        front, rest = (*whole[:3], s.rotary), (*whole[:3], whole[3] - s.rotary)
        k_rot, k_pass = t.slice(k, front), t.slice(k, rest)
        q_rot, q_pass = t.slice(q, front), t.slice(q, rest)
        k_rot = rotate_pairs(t, k_rot, length)
        q_rot = rotate_pairs(t, q_rot, length)
        k = t.cat((k_rot, k_pass), whole)
        q = t.cat((q_rot, q_pass), whole)
        by_head = (batch, s.heads, length, whole[3])
        q, k, v = t.view(q, by_head), t.view(k, by_head), t.view(v, by_head)
        if t.attention == "flash":
            out = t.attend(q, k, v, mask)
            t.block_weights.append(out)  # returned in the place of the weights
        else:
            out = self.written_out(t, q, k, v, mask)
            out = t.relaid(out) if batch > 1 else t.contiguous(out)
        out = t.call("out_proj", self.out_proj, t.view(out, x.shape))
        del looked_up
        return t.dropout(out, s.resid_dropout)  # type: ignore[no-any-return]

    def look_up(self, t: Ops, length: int, dtype: DType) -> tuple[Tensor, ...]:
        """Sines and cosines, and what they were gathered from: all alive to the attention's end."""
        s = self.s
        shape, numel = (1, length, s.rotary), length * s.rotary
        table = t.new((1, s.positions, s.rotary), s.positions * s.rotary, FP32, "repeat")
        places = t.new(shape, numel, INT64, "repeat")
        return table, places, t.to(t.new(shape, numel, FP32, "gather"), dtype)

    def written_out(self, t: Ops, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Scores of fp32 queries and keys, softmax, weights in the values' type."""
        batch, heads, length, dim = q.shape
        q, k = t.to(q, FP32), t.to(k, FP32)
        weights = t.matmul(q, k, (batch, heads, length, length), copied=(True, True))
        weights = t.mul_scalar(weights, "div")
        weights = t.add(weights, mask)
        weights = t.softmax(weights)
        weights = t.to(weights, v.dtype)
        weights = t.dropout(weights, self.s.attn_dropout)
        t.block_weights.append(weights)
        return t.matmul(weights, v, (batch, heads, length, dim), copied=(False, True))  # type: ignore[no-any-return]


class MLP(Module):
    """fc_out(act(fc_in(x))), then dropout."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.fc_in = Linear(s.hidden, s.inner, True)
        self.fc_out = Linear(s.inner, s.hidden, True)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        x = t.call("fc_in", self.fc_in, x)
        x = t.activation(x, self.s.activation)
        x = t.call("fc_out", self.fc_out, x)
        return t.dropout(x, self.s.resid_dropout)  # type: ignore[no-any-return]


class Block(Module):
    """Attention and MLP on the same normed input, both added to the block's input."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(s.hidden)
        self.attn = Attention(s)
        self.mlp = MLP(s)

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        residual = x
        x = t.call("ln_1", self.ln_1, x)
        attended = t.call("attn", self.attn, x, given[0])
        fed = t.call("mlp", self.mlp, x)
        x = t.add(t.add(attended, fed), residual)
        t.hand_back()
        return x


class Stem(Module):
    """The table of tokens and the last norm."""

    def __init__(self, vocab: int, hidden: int) -> None:
        super().__init__()
        self.wte = Embedding(vocab, hidden)
        self.ln_f = LayerNorm(hidden)


def shape(c: Config) -> Shape:
    """The sizes, under either of the names that GPT-J configs give them."""
    width_key, heads_key = alias(c, "n_embd", "hidden_size"), alias(c, "n_head", "num_attention_heads")
    hidden, heads = c.size(width_key, 4096), c.count(heads_key, 16)
    c.divides(heads_key, heads, width_key, hidden)
    rotary = c.size("rotary_dim", 64)
    if rotary % 2 or rotary >= hidden // heads:
        raise c.fail("rotary_dim", rotary, f"even and below the width of a head ({hidden // heads})")
    return Shape(
        hidden,
        heads,
        c.size("n_inner", 4 * hidden),
        rotary,
        c.size(alias(c, "n_positions", "max_position_embeddings"), 2048),
        activation(c, "activation_function", "gelu_new"),
        c.probability("resid_pdrop"),
        c.probability("attn_pdrop"),
    )


def build(c: Config) -> ModelSpec:
    """A GPT-J, from its config."""
    s = shape(c)
    vocab, embed_dropout = c.size("vocab_size", 50400), c.probability("embd_pdrop")
    stem, model = Module(), Stem(vocab, s.hidden)
    head = Linear(s.hidden, vocab, True)
    if c.flag("tie_word_embeddings"):
        head.weight = model.wte.weight
    stem.add("transformer", model)
    stem.add("lm_head", head)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, Given]:
        batch, length = ids.shape
        words = t.call("transformer.wte", model.wte, ids)
        t.keep(words)
        at = position_ids(t, length)
        mask = attention_mask(t, batch, length, words.dtype)
        return t.dropout(words, embed_dropout), (mask, at)

    def leave(t: Ops, x: Tensor) -> Tensor:
        return t.call("transformer.ln_f", model.ln_f, x)  # type: ignore[no-any-return]

    return ModelSpec(
        family="gptj",
        stem=stem,
        runs=[BlockRun(Block(s), c.count(alias(c, "n_layer", "num_hidden_layers"), 28), 0, "transformer.h")],
        enter=enter,
        leave=leave,
        head=head,
        head_path="lm_head",
        vocab_size=vocab,
        max_seq_len=s.positions,
        attention_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
        mlp_targets=("fc_in", "fc_out"),
        attention_kinds=("flash", "eager"),
        keeps_first_input=False,
        notes=["gptj: transformers has no sdpa form of its attention, scores are written out in fp32"],
    )
