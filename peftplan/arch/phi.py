"""Phi-1, 1.5 and 2: one norm feeds attention and MLP side by side, rotary on a part of each head.

Source: transformers 5.23 modeling_phi.py, configuration_phi.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftplan.arch.config import Config, activation, head_dim
from peftplan.arch.decoder_parts import Given
from peftplan.arch.masks import attention_mask
from peftplan.arch.rotary import RotaryEmbedding, position_ids, rotary_width, rotate, split_head
from peftplan.specs.cache import cached_heads
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, LayerNorm, Linear, Module, Ops
from peftplan.specs.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """A Phi's sizes and switches."""

    hidden: int
    heads: int
    kv_heads: int
    dim: int
    inner: int
    activation: str
    head_norm: bool
    dropout: float
    attn_dropout: float


class Attention(Module):
    """Self-attention; the unrotated rest of queries and keys keeps their projections alive to the end."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.q_proj = Linear(s.hidden, s.heads * s.dim, True)
        self.k_proj = Linear(s.hidden, s.kv_heads * s.dim, True)
        self.v_proj = Linear(s.hidden, s.kv_heads * s.dim, True)
        self.dense = Linear(s.heads * s.dim, s.hidden, True)
        self.caches = cached_heads(s.kv_heads, s.dim, s.heads)
        if s.head_norm:
            self.q_layernorm = LayerNorm(s.hidden // s.heads)
            self.k_layernorm = LayerNorm(s.hidden // s.heads)

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        s = self.s
        batch, length, _ = x.shape
        heads, kv_heads = (batch, s.heads, length, s.dim), (batch, s.kv_heads, length, s.dim)
        q = t.view(t.call("q_proj", self.q_proj, x), heads)
        k = t.view(t.call("k_proj", self.k_proj, x), kv_heads)
        v = t.view(t.call("v_proj", self.v_proj, x), kv_heads)
        if s.head_norm:
            q = t.call("q_layernorm", self.q_layernorm, q)
            k = t.call("k_layernorm", self.k_layernorm, k)
        q_rot, q_pass = split_head(t, q, given.table)
        k_rot, k_pass = split_head(t, k, given.table)
        q_rot, k_rot = rotate(t, q_rot, given.table), rotate(t, k_rot, given.table)
        q = t.cat((q_rot, q_pass), heads)
        k = t.cat((k_rot, k_pass), kv_heads)
        out = t.attend(q, k, v, given.mask, s.attn_dropout, by_heads=True)
        out = t.view(out, (batch, length, s.heads * s.dim))
        out = t.call("dense", self.dense, out)
        return out  # type: ignore[no-any-return]


class MLP(Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.activation = s.activation
        self.fc1 = Linear(s.hidden, s.inner, True)
        self.fc2 = Linear(s.inner, s.hidden, True)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        x = t.call("fc1", self.fc1, x)
        x = t.activation(x, self.activation)
        return t.call("fc2", self.fc2, x)  # type: ignore[no-any-return]


class Block(Module):
    """Attention and MLP on the same normed input, both added to the block's input."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.dropout = s.dropout
        self.self_attn = Attention(s)
        self.mlp = MLP(s)
        self.input_layernorm = LayerNorm(s.hidden)

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        residual = x
        x = t.call("input_layernorm", self.input_layernorm, x)
        attended = t.call("self_attn", self.self_attn, x, given)
        attended = t.dropout(attended, self.dropout)
        fed = t.dropout(t.call("mlp", self.mlp, x), self.dropout)
        return t.add(t.add(attended, fed), residual)  # type: ignore[no-any-return]


class Stem(Module):
    """The table of tokens, the rotary frequencies and the last norm."""

    def __init__(self, vocab: int, hidden: int, rotary: int) -> None:
        super().__init__()
        self.embed_tokens = Embedding(vocab, hidden)
        self.rotary_emb = RotaryEmbedding(rotary)
        self.final_layernorm = LayerNorm(hidden)


def shape(c: Config) -> Shape:
    """The sizes and switches of a config."""
    hidden, heads = c.size("hidden_size", 2048), c.count("num_attention_heads", 32)
    kv_heads = c.count("num_key_value_heads", heads)
    c.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    return Shape(
        hidden,
        heads,
        kv_heads,
        head_dim(c, hidden, heads),
        c.size("intermediate_size", 8192),
        activation(c, "hidden_act", "gelu_new"),
        c.flag("qk_layernorm"),
        c.probability("resid_pdrop"),
        c.probability("attention_dropout"),
    )


def build(c: Config) -> ModelSpec:
    """A Phi, from its config."""
    s = shape(c)
    vocab, embed_dropout = c.size("vocab_size", 51200), c.probability("embd_pdrop")
    rotary = rotary_width(c, s.dim, "partial_rotary_factor", 0.5)
    stem, model = Module(), Stem(vocab, s.hidden, rotary)
    head = Linear(s.hidden, vocab, True)
    if c.flag("tie_word_embeddings"):
        head.weight = model.embed_tokens.weight
    stem.add("model", model)
    stem.add("lm_head", head)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, Given]:
        batch, length = ids.shape
        x = t.call("model.embed_tokens", model.embed_tokens, ids)
        positions = position_ids(t, length)
        mask = attention_mask(t, batch, length, x.dtype)
        x = t.dropout(x, embed_dropout)
        return x, Given((*model.rotary_emb.table(t, x, positions), positions), mask)

    def leave(t: Ops, x: Tensor) -> Tensor:
        return t.call("model.final_layernorm", model.final_layernorm, x)  # type: ignore[no-any-return]

    return ModelSpec(
        family="phi",
        stem=stem,
        runs=[BlockRun(Block(s), c.count("num_hidden_layers", 24), 0, "model.layers")],
        enter=enter,
        leave=leave,
        head=head,
        head_path="lm_head",
        vocab_size=vocab,
        max_seq_len=c.size("max_position_embeddings", 2048, limit=10**9),
        attention_targets=("q_proj", "k_proj", "v_proj", "dense"),
        mlp_targets=("fc1", "fc2"),
    )
