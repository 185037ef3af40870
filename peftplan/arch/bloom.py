"""Bloom: position biases, attention written out, its own GELU, blocks that add their own residuals.

transformers has no other form of its attention: asked for nothing, it writes scores out in full.
Source: transformers 5.23 modeling_bloom.py, configuration_bloom.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from peftplan.arch.alibi import position_biases
from peftplan.arch.config import Config, alias
from peftplan.arch.masks import attention_mask
from peftplan.arch.rotary import cache_positions
from peftplan.specs.cache import cached_heads
from peftplan.specs.formats import FP32
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, LayerNorm, Linear, Module, Ops
from peftplan.specs.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """A Bloom's sizes and switches."""

    hidden: int
    heads: int
    residual_behind_norm: bool
    dropout: float
    attn_dropout: float


class Given(NamedTuple):
    """What every block is given."""

    alibi: Tensor
    mask: Tensor | None
    steps: Tensor | None  # positions in the sequence


class Attention(Module):
    """Self-attention with biases added to the scores, then the residual."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.query_key_value = Linear(s.hidden, 3 * s.hidden, True)
        self.dense = Linear(s.hidden, s.hidden, True)
        self.caches = cached_heads(s.heads, s.hidden // s.heads, s.heads)

    def forward(self, t: Ops, x: Tensor, residual: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        s = self.s
        batch, length, _ = x.shape
        qkv = t.call("query_key_value", self.query_key_value, x)
        one = (batch, s.heads, length, s.hidden // s.heads)
        q, k, v = t.slice(qkv, one), t.slice(qkv, one), t.slice(qkv, one)
        if batch > 1:  # batch and heads become one dimension
            q, k, v = t.contiguous(q), t.contiguous(k), t.contiguous(v)
        scores = self.biased_scores(t, q, k, given.alibi)
        weights = t.add(scores, given.mask)
        probabilities = t.to(t.softmax(weights, FP32), q.dtype)
        probabilities = t.dropout(probabilities, s.attn_dropout)
        t.block_weights.append(probabilities)
        context = t.matmul(probabilities, v, one)
        context = t.relaid(context) if batch > 1 else t.contiguous(context)
        out = t.call("dense", self.dense, t.view(context, x.shape))
        return t.add(residual, t.dropout(out, s.dropout))  # type: ignore[no-any-return]

    @staticmethod
    def biased_scores(t: Ops, q: Tensor, k: Tensor, alibi: Tensor) -> Tensor:
        """baddbmm: one kernel, which autocast hands its biases in 16 bits too."""
        batch, heads, length, _ = q.shape
        low = t.autocast_to(alibi, t.autocast)
        out: Tensor = t.matmul(q, k, (batch, heads, length, length))
        del low
        return out


class MLP(Module):
    """Two linears around Bloom's GELU, then the residual."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.dense_h_to_4h = Linear(s.hidden, 4 * s.hidden, True)
        self.dense_4h_to_h = Linear(4 * s.hidden, s.hidden, True)

    def forward(self, t: Ops, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        x = t.bloom_gelu(t.call("dense_h_to_4h", self.dense_h_to_4h, x))
        out = t.call("dense_4h_to_h", self.dense_4h_to_h, x)
        return t.add(residual, t.dropout(out, self.s.dropout))  # type: ignore[no-any-return]


class Block(Module):
    """Attention and MLP, each behind a norm."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.input_layernorm = LayerNorm(s.hidden)
        self.self_attention = Attention(s)
        self.post_attention_layernorm = LayerNorm(s.hidden)
        self.mlp = MLP(s)

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        behind = self.s.residual_behind_norm
        normed = t.call("input_layernorm", self.input_layernorm, x)
        residual = normed if behind else x
        attended = t.call("self_attention", self.self_attention, normed, residual, given)
        normed = t.call("post_attention_layernorm", self.post_attention_layernorm, attended)
        residual = normed if behind else attended
        out: Tensor = t.call("mlp", self.mlp, normed, residual)
        t.hand_back()
        return out


class Stem(Module):
    """The table of tokens with its norm, and the last norm."""

    def __init__(self, vocab: int, hidden: int) -> None:
        super().__init__()
        self.word_embeddings = Embedding(vocab, hidden)
        self.word_embeddings_layernorm = LayerNorm(hidden)
        self.ln_f = LayerNorm(hidden)


def shape(c: Config) -> Shape:
    """The sizes and switches of a config."""
    width_key, heads_key = alias(c, "n_embed", "hidden_size"), alias(c, "n_head", "num_attention_heads")
    hidden, heads = c.size(width_key, 64), c.count(heads_key, 8)
    c.divides(heads_key, heads, width_key, hidden)
    if c.flag("slow_but_exact") and c.count("pretraining_tp", 1) > 1:
        raise c.fail("slow_but_exact", True, "false: its linears in slices are not modelled")
    return Shape(
        hidden,
        heads,
        c.flag("apply_residual_connection_post_layernorm"),
        c.probability("hidden_dropout"),
        c.probability("attention_dropout"),
    )


def build(c: Config) -> ModelSpec:
    """A Bloom, from its config."""
    s = shape(c)
    vocab = c.size("vocab_size", 250880)
    stem, model = Module(), Stem(vocab, s.hidden)
    head = Linear(s.hidden, vocab)
    if c.flag("tie_word_embeddings", True):
        head.weight = model.word_embeddings.weight
    stem.add("transformer", model)
    stem.add("lm_head", head)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, Given]:
        words = t.call("transformer.word_embeddings", model.word_embeddings, ids)
        t.keep(words)
        x = t.call("transformer.word_embeddings_layernorm", model.word_embeddings_layernorm, words)
        alibi = position_biases(t, ids, s.heads, FP32, x.dtype)
        steps = cache_positions(t, ids.shape[1])
        return x, Given(alibi, attention_mask(t, ids.shape[0], ids.shape[1], words.dtype), steps)

    def leave(t: Ops, x: Tensor) -> Tensor:
        return t.call("transformer.ln_f", model.ln_f, x)  # type: ignore[no-any-return]

    return ModelSpec(
        family="bloom",
        stem=stem,
        runs=[BlockRun(Block(s), c.count(alias(c, "n_layer", "num_hidden_layers"), 2), 0, "transformer.h")],
        enter=enter,
        leave=leave,
        head=head,
        head_path="lm_head",
        vocab_size=vocab,
        max_seq_len=None,
        attention_targets=("query_key_value", "self_attention.dense"),
        mlp_targets=("dense_h_to_4h", "dense_4h_to_h"),
        attention_kinds=("eager",),
        keeps_first_input=False,
        notes=["bloom: transformers has no kernel for its attention, scores are written out in full (eager)"],
    )
