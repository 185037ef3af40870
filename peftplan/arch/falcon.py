"""Falcon: linears written as products, one or few key-value heads, attention and MLP side by side.

Its mask is always made, never left to the kernel's causal flag, so that no flash kernel is taken. Its linears
are a class of their own: a bitsandbytes load of transformers 5 leaves them dense.
Source: transformers 5.23 modeling_falcon.py, configuration_falcon.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from peftplan.arch.alibi import biased_mask, position_biases
from peftplan.arch.config import Config, activation, alias
from peftplan.arch.masks import attention_mask
from peftplan.arch.rotary import RotaryEmbedding, Table, position_ids, rotate
from peftplan.specs.cache import Cached
from peftplan.specs.formats import BF16, FP32, DType
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, LayerNorm, Linear, Module, Ops
from peftplan.specs.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """A Falcon's sizes and switches."""

    hidden: int
    heads: int
    kv_heads: int
    inner: int
    activation: str
    bias: bool
    alibi: bool
    grouped: bool  # new_decoder_architecture: groups of queries, each with its key and value
    parallel: bool
    norms: int  # before attention and MLP that run side by side
    dropout: float
    attn_dropout: float


class Given(NamedTuple):
    """What every block is given: position biases and mask, rotary tables with the position ids."""

    alibi: Tensor | None
    mask: Tensor | None
    table: Table


class FalconLinear(Linear):
    """x @ weight.T, then + bias: the weight's transpose is a view, whose cast autocast does not keep."""

    convertible = False
    derived = True

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        out = t.linear(x, t.view(self.weight, self.weight.shape))
        if self.bias is None:
            return out  # type: ignore[no-any-return]
        return t.add(out, self.bias)  # type: ignore[no-any-return]


class Attention(Module):
    """Self-attention; query, key and value heads lie in one projection."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s, self.dim = s, s.hidden // s.heads
        self.turns = not s.alibi
        self.query_key_value = FalconLinear(s.hidden, (s.heads + 2 * s.kv_heads) * self.dim, s.bias)
        self.dense = FalconLinear(s.hidden, s.hidden, s.bias)
        width = (s.heads if s.grouped else s.kv_heads) * self.dim  # a group's key and value are spread before
        least = 2 * s.kv_heads * self.dim
        self.caches = Cached(width, width, s.heads, self.dim, self.dim, shared=least)

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        qkv = t.call("query_key_value", self.query_key_value, x)
        q, k, v = self.split_heads(t, qkv)
        if not self.s.alibi:
            q, k = rotate(t, q, given.table), rotate(t, k, given.table)
        local: tuple[Tensor, ...] = ()  # what the real forward still names while it projects the output
        if t.attention == "eager":
            out, local = self.eager(t, x.dtype, q, k, v, given)
        elif t.attention == "flash":
            out = t.attend(q, k, v, given.mask)
        else:
            dropout = self.s.attn_dropout if self.s.alibi else 0.0
            if given.mask is not None and t.behaviour.sdpa_contiguous == "masked":
                q, k, v = t.relaid(q), t.relaid(k), t.relaid(v)
            out = t.sdpa(q, k, v, given.mask, dropout, repeats=False)
        out = t.call("dense", self.dense, t.view(out, x.shape))
        del local
        return out  # type: ignore[no-any-return]

    def split_heads(self, t: Ops, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [batch, heads, length, dim]."""
        s, dim = self.s, self.dim
        batch, length, _ = qkv.shape
        if s.grouped:
            return self.spread_groups(t, qkv)
        if s.kv_heads == s.heads:
            one = (batch, s.heads, length, dim)
            return t.slice(qkv, one), t.slice(qkv, one), t.slice(qkv, one)
        q = t.slice(qkv, (batch, s.heads, length, dim))
        return q, t.pick(qkv, (batch, 1, length, dim)), t.pick(qkv, (batch, 1, length, dim))

    def spread_groups(self, t: Ops, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each group's key and value copied for every query head of it."""
        s, dim = self.s, self.dim
        batch, length, _ = qkv.shape
        all_heads, kv_heads = (batch, s.heads, length, dim), (batch, s.kv_heads, length, dim)
        q = t.slice(qkv, all_heads)
        k = t.pick(qkv, kv_heads)
        v = t.pick(qkv, kv_heads)
        if s.kv_heads == 1:
            return q, t.expand(k, all_heads), t.expand(v, all_heads)
        return t.contiguous(q), t.expand_copy(k, all_heads), t.expand_copy(v, all_heads)

    def eager(
        self, t: Ops, dtype: DType, q: Tensor, k: Tensor, v: Tensor, given: Given
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Written out, softmax in the type of the input; with biases, scores in fp32 and dropout, and all kept."""
        batch, heads, length, dim = q.shape
        local: tuple[Tensor, ...] = ()
        scores = t.matmul(q, k, (batch, heads, length, length), copied=(True, True))
        if given.alibi is None:
            scores = t.scale_in_place(scores)
            total = t.add(scores, given.mask)
            weights = t.softmax(half_of(t, total, dtype), dtype)
            del scores, total
        else:
            high = t.to(scores, FP32)
            logits = t.scale_in_place(t.add(high, given.alibi))
            total = t.add(logits, given.mask)
            weights = t.softmax(half_of(t, total, dtype), dtype)
            del total
            weights = t.dropout(weights, self.s.attn_dropout)
            local = scores, high, logits
        t.block_weights.append(weights)
        out = t.matmul(weights, v, (batch, heads, length, dim), copied=(False, True))
        return t.contiguous(out), local


def half_of(t: Ops, x: Tensor, dtype: DType) -> Tensor:
    """What softmax(x, dtype) casts first: the kernel itself widens 16 bits to 32, and does not narrow."""
    return t.to(x, dtype) if x.dtype is FP32 else x


class MLP(Module):
    """dense_4h_to_h(act(dense_h_to_4h(x)))."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.activation = s.activation
        self.dense_h_to_4h = FalconLinear(s.hidden, s.inner, s.bias)
        self.dense_4h_to_h = FalconLinear(s.inner, s.hidden, s.bias)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        x = t.activation(t.call("dense_h_to_4h", self.dense_h_to_4h, x), self.activation)
        return t.call("dense_4h_to_h", self.dense_4h_to_h, x)  # type: ignore[no-any-return]


class Block(Module):
    """Attention and MLP: side by side behind one norm or two, or one after the other."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.self_attention = Attention(s)
        self.mlp = MLP(s)
        if not s.parallel:
            self.post_attention_layernorm = LayerNorm(s.hidden)
            self.input_layernorm = LayerNorm(s.hidden)
        elif s.norms == 2:
            self.ln_attn = LayerNorm(s.hidden)
            self.ln_mlp = LayerNorm(s.hidden)
        else:
            self.input_layernorm = LayerNorm(s.hidden)

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        s, residual = self.s, x
        to_feed = None
        if s.norms == 2:
            to_attend = t.call("ln_attn", self.ln_attn, x)
            to_feed = t.call("ln_mlp", self.ln_mlp, x)
        else:
            to_attend = t.call("input_layernorm", self.input_layernorm, x)
        attended = t.call("self_attention", self.self_attention, to_attend, given)
        if not s.parallel:
            residual = t.add(residual, t.dropout(attended, s.attn_dropout))
            to_feed = t.call("post_attention_layernorm", self.post_attention_layernorm, residual)
        elif to_feed is None:
            to_feed = to_attend
        fed = t.call("mlp", self.mlp, to_feed)
        if s.parallel:
            fed = t.add_in_place(fed, attended)
        out: Tensor = t.add(residual, t.dropout(fed, s.dropout))
        t.hand_back()
        return out


class Stem(Module):
    """The table of tokens, the last norm and the rotary frequencies, unused where there are biases."""

    def __init__(self, vocab: int, s: Shape) -> None:
        super().__init__()
        self.word_embeddings = Embedding(vocab, s.hidden)
        self.ln_f = LayerNorm(s.hidden)
        self.rotary_emb = RotaryEmbedding(s.hidden // s.heads)


def shape(c: Config) -> Shape:
    """The sizes and switches of a config; combinations that the model itself cannot run are refused."""
    width_key = alias(c, "n_embed", "hidden_size")
    hidden, heads = c.size(width_key, 4544), c.count("num_attention_heads", 71)
    c.divides("num_attention_heads", heads, width_key, hidden)
    grouped, parallel = c.flag("new_decoder_architecture"), c.flag("parallel_attn", True)
    kv_heads = c.count("num_kv_heads", heads)
    if not grouped:
        kv_heads = 1 if c.flag("multi_query", True) else heads
    c.divides("num_kv_heads", kv_heads, "num_attention_heads", heads)
    norms = c.natural("num_ln_in_parallel_attn", 2 if grouped else 1)
    if grouped and not parallel:
        raise c.fail("parallel_attn", False, "true where new_decoder_architecture is")
    if norms not in ((1, 2) if grouped else (1,)):
        raise c.fail("num_ln_in_parallel_attn", norms, "1, or 2 where new_decoder_architecture is true")
    return Shape(
        hidden,
        heads,
        kv_heads,
        c.size("ffn_hidden_size", 4 * hidden),
        activation(c, "activation", "gelu"),
        c.flag("bias"),
        c.flag("alibi"),
        grouped,
        parallel,
        norms,
        c.probability("hidden_dropout"),
        c.probability("attention_dropout"),
    )


def build(c: Config) -> ModelSpec:
    """A Falcon, from its config."""
    s = shape(c)
    vocab = c.size("vocab_size", 65024)
    stem, model = Module(), Stem(vocab, s)
    head = Linear(s.hidden, vocab)
    if c.flag("tie_word_embeddings", True):
        head.weight = model.word_embeddings.weight
    stem.add("transformer", model)
    stem.add("lm_head", head)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, Given]:
        batch, length = ids.shape
        x = t.call("transformer.word_embeddings", model.word_embeddings, ids)
        alibi = None
        if s.alibi:
            alibi = position_biases(t, ids, s.heads, BF16, x.dtype)
        positions = position_ids(t, length)
        mask = attention_mask(t, batch, length, x.dtype, always=t.behaviour.always_masked or s.alibi)
        if alibi is not None and mask is not None:
            mask = biased_mask(t, alibi, mask)
        return x, Given(alibi, mask, (*model.rotary_emb.table(t, x, positions), positions))

    def leave(t: Ops, x: Tensor) -> Tensor:
        return t.call("transformer.ln_f", model.ln_f, x)  # type: ignore[no-any-return]

    return ModelSpec(
        family="falcon",
        stem=stem,
        runs=[BlockRun(Block(s), c.count("num_hidden_layers", 32), 0, "transformer.h")],
        enter=enter,
        leave=leave,
        head=head,
        head_path="lm_head",
        vocab_size=vocab,
        max_seq_len=c.size("max_position_embeddings", 2048, limit=10**9),
        attention_targets=("query_key_value", "self_attention.dense"),
        mlp_targets=("dense_h_to_4h", "dense_4h_to_h"),
        attention_kinds=("sdpa", "eager") if s.alibi else ("sdpa", "flash", "eager"),
    )
