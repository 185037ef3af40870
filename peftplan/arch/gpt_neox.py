"""GPT-NeoX and Pythia: rotary positions on a part of each head, attention and MLP side by side.

Source: transformers 5.23 modeling_gpt_neox.py, configuration_gpt_neox.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftplan.arch.config import Config, activation
from peftplan.arch.decoder_parts import Given
from peftplan.arch.masks import attention_mask
from peftplan.arch.rotary import RotaryEmbedding, Table, position_ids, rotary_width, rotate, split_head
from peftplan.specs.cache import cached_heads
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, LayerNorm, Linear, Module, Ops
from peftplan.specs.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """A GPT-NeoX's sizes and switches."""

    hidden: int
    heads: int
    inner: int
    activation: str
    bias: bool
    parallel: bool
    dropout: float
    attn_dropout: float


def rotate_parts(t: Ops, q: Tensor, k: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Queries and keys whose first dimensions are rotated, each joined whole again."""
    (q_rot, q_pass), (k_rot, k_pass) = split_head(t, q, table), split_head(t, k, table)
    q_out, k_out = rotate(t, q_rot, table), rotate(t, k_rot, table)
    q_out = t.cat((q_out, q_pass), q.shape)
    k_out = t.cat((k_out, k_pass), k.shape)
    return q_out, k_out


class Attention(Module):
    """Self-attention; each head's query, key and value lie together in one projection."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.heads, self.dropout = s.heads, s.attn_dropout
        self.query_key_value = Linear(s.hidden, 3 * s.hidden, s.bias)
        self.dense = Linear(s.hidden, s.hidden, s.bias)
        self.caches = cached_heads(s.heads, s.hidden // s.heads, s.heads)

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        batch, length, width = x.shape
        qkv = t.call("query_key_value", self.query_key_value, x)
        q, k, v = t.split(qkv, [(batch, self.heads, length, width // self.heads)] * 3)
        q, k = rotate_parts(t, q, k, given.table)
        out = t.view(t.attend(q, k, v, given.mask, self.dropout, by_heads=True), x.shape)
        out = t.call("dense", self.dense, out)
        return out  # type: ignore[no-any-return]


class MLP(Module):
    """dense_4h_to_h(act(dense_h_to_4h(x)))."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.activation = s.activation
        self.dense_h_to_4h = Linear(s.hidden, s.inner, True)
        self.dense_4h_to_h = Linear(s.inner, s.hidden, True)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        x = t.call("dense_h_to_4h", self.dense_h_to_4h, x)
        x = t.activation(x, self.activation)
        return t.call("dense_4h_to_h", self.dense_4h_to_h, x)  # type: ignore[no-any-return]


class Block(Module):
    """Attention and MLP, both fed from the block's input or one after the other."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.parallel, self.dropout = s.parallel, s.dropout
        self.input_layernorm = LayerNorm(s.hidden)
        self.post_attention_layernorm = LayerNorm(s.hidden)
        self.attention = Attention(s)
        self.mlp = MLP(s)

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        attended = t.call("attention", self.attention, t.call("input_layernorm", self.input_layernorm, x), given)
        attended = t.dropout(attended, self.dropout)
        if self.parallel:
            fed = self.feed(t, x)
            return t.add(t.add(fed, attended), x)  # type: ignore[no-any-return]
        attended = t.add(attended, x)
        fed = self.feed(t, attended)
        return t.add(fed, attended)  # type: ignore[no-any-return]

    def feed(self, t: Ops, x: Tensor) -> Tensor:
        """The MLP behind its norm and before its dropout."""
        out = t.call("mlp", self.mlp, t.call("post_attention_layernorm", self.post_attention_layernorm, x))
        return t.dropout(out, self.dropout)  # type: ignore[no-any-return]


class Stem(Module):
    """The table of tokens, the last norm and the rotary frequencies."""

    def __init__(self, vocab: int, hidden: int, rotary: int) -> None:
        super().__init__()
        self.embed_in = Embedding(vocab, hidden)
        self.final_layer_norm = LayerNorm(hidden)
        self.rotary_emb = RotaryEmbedding(rotary)


def shape(c: Config) -> Shape:
    """The sizes and switches of a config."""
    hidden, heads = c.size("hidden_size", 6144), c.count("num_attention_heads", 64)
    c.divides("num_attention_heads", heads, "hidden_size", hidden)
    return Shape(
        hidden,
        heads,
        c.size("intermediate_size", 24576),
        activation(c, "hidden_act", "gelu"),
        c.flag("attention_bias", True),
        c.flag("use_parallel_residual", True),
        c.probability("hidden_dropout"),
        c.probability("attention_dropout"),
    )


def build(c: Config) -> ModelSpec:
    """A GPT-NeoX, from its config."""
    s = shape(c)
    vocab = c.size("vocab_size", 50432)
    rotary = rotary_width(c, s.hidden // s.heads, "rotary_pct", 0.25)
    stem, model = Module(), Stem(vocab, s.hidden, rotary)
    head = Linear(s.hidden, vocab)
    if c.flag("tie_word_embeddings"):
        head.weight = model.embed_in.weight
    stem.add("gpt_neox", model)
    stem.add("lm_head", head)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, Given]:
        batch, length = ids.shape
        words = t.call("gpt_neox.embed_in", model.embed_in, ids)
        t.keep(words)
        positions = position_ids(t, length)
        mask = attention_mask(t, batch, length, words.dtype)
        x = t.dropout(words, s.dropout)
        return x, Given((*model.rotary_emb.table(t, x, positions), positions), mask)

    def leave(t: Ops, x: Tensor) -> Tensor:
        return t.call("gpt_neox.final_layer_norm", model.final_layer_norm, x)  # type: ignore[no-any-return]

    return ModelSpec(
        family="gpt_neox",
        stem=stem,
        runs=[BlockRun(Block(s), c.count("num_hidden_layers", 44), 0, "gpt_neox.layers")],
        enter=enter,
        leave=leave,
        head=head,
        head_path="lm_head",
        vocab_size=vocab,
        max_seq_len=c.size("max_position_embeddings", 2048, limit=10**9),
        attention_targets=("query_key_value", "attention.dense"),
        mlp_targets=("dense_h_to_4h", "dense_4h_to_h"),
        keeps_first_input=False,
    )
