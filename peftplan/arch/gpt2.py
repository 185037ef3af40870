"""GPT-2: learned positions, pre-norm blocks, one matrix for queries, keys and values, dropout throughout.

Source: transformers 5.23 modeling_gpt2.py, configuration_gpt2.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peftplan.arch.config import Config, activation, alias
from peftplan.arch.masks import attention_mask
from peftplan.arch.rotary import position_ids
from peftplan.specs.cache import cached_heads
from peftplan.specs.formats import BOOL
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Conv1D, Embedding, LayerNorm, Linear, Module, Ops
from peftplan.specs.tensors import Tensor

# mask, positions of the tokens
Given = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True, slots=True)
class Shape:
    """A GPT-2's sizes and dropout probabilities."""

    hidden: int
    heads: int
    inner: int
    activation: str
    resid_dropout: float
    attn_dropout: float


class Attention(Module):
    """Self-attention whose three projections are one Conv1D."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.c_attn = Conv1D(s.hidden, 3 * s.hidden)
        self.c_proj = Conv1D(s.hidden, s.hidden)
        self.caches = cached_heads(s.heads, s.hidden // s.heads, s.heads)

    def forward(self, t: Ops, x: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[override]
        s = self.s
        batch, length, width = x.shape
        heads = (batch, s.heads, length, width // s.heads)
        q, k, v = t.split(t.call("c_attn", self.c_attn, x), [x.shape] * 3)
        q, k, v = t.view(q, heads), t.view(k, heads), t.view(v, heads)
        k, v = t.extended(k, v)
        if t.attention == "eager":
            out = self.eager(t, q, k, v, mask)
        else:
            out = t.attend(q, k, v, mask, s.attn_dropout)
        out = t.view(out, x.shape)
        out = t.call("c_proj", self.c_proj, out)
        return t.dropout(out, s.resid_dropout)  # type: ignore[no-any-return]

    def eager(self, t: Ops, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Written out: no type is named for the softmax, its result is cast to the values' type."""
        batch, heads, length, dim = q.shape
        weights = t.matmul(q, k, (batch, heads, length, length), copied=(True, True))
        if t.behaviour.causal_buffers == "none":
            weights = t.mul_scalar(weights)
        else:
            weights = t.mul(weights, t.new((), 1, weights.dtype, "full"))
            seen = (1, 1, length, length)
            weights = t.where(Tensor(seen, length * length, BOOL, None, None), weights)  # a buffer's part
        weights = t.add(weights, mask)
        weights = t.softmax(weights)
        weights = t.to(weights, v.dtype)
        weights = t.dropout(weights, self.s.attn_dropout)
        t.block_weights.append(weights)
        out = t.matmul(weights, v, (batch, heads, length, dim), copied=(False, True))
        return t.relaid(out) if batch > 1 else t.contiguous(out)  # type: ignore[no-any-return]


class MLP(Module):
    """c_proj(act(c_fc(x))), then dropout; `linear` makes a projection of so many inputs and outputs."""

    def __init__(self, s: Shape, linear: Callable[[int, int], Module] = Conv1D) -> None:
        super().__init__()
        self.s = s
        self.c_fc = linear(s.hidden, s.inner)
        self.c_proj = linear(s.inner, s.hidden)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        x = t.call("c_fc", self.c_fc, x)
        x = t.activation(x, self.s.activation)
        x = t.call("c_proj", self.c_proj, x)
        return t.dropout(x, self.s.resid_dropout)  # type: ignore[no-any-return]


class Block(Module):
    """Attention and MLP, each behind a LayerNorm and beside a residual."""

    positional: tuple[int, ...] = (0,)

    def __init__(self, s: Shape, attention: Module, mlp: Module) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(s.hidden)
        self.attn = attention
        self.ln_2 = LayerNorm(s.hidden)
        self.mlp = mlp

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        residual = x
        x = t.call("ln_1", self.ln_1, x)
        attended = t.call("attn", self.attn, x, given[0])
        x = t.add(attended, residual)
        residual = x
        x = t.call("ln_2", self.ln_2, x)
        fed = t.call("mlp", self.mlp, x)
        return t.add(residual, fed)  # type: ignore[no-any-return]


class Stem(Module):
    """Tables of tokens and positions, and the last norm."""

    def __init__(self, vocab: int, positions: int, hidden: int) -> None:
        super().__init__()
        self.wte = Embedding(vocab, hidden)
        self.wpe = Embedding(positions, hidden)
        self.ln_f = LayerNorm(hidden)


def shape(c: Config, gelu: str = "gelu_new") -> Shape:
    """The sizes, under either of the names that configs of this kind give them."""
    width_key, heads_key = alias(c, "n_embd", "hidden_size"), alias(c, "n_head", "num_attention_heads")
    hidden, heads = c.size(width_key, 768), c.count(heads_key, 12)
    c.divides(heads_key, heads, width_key, hidden)
    if c.flag("add_cross_attention"):
        raise c.fail("add_cross_attention", True, "false: a decoder without an encoder")
    return Shape(
        hidden,
        heads,
        c.size("n_inner", 4 * hidden),
        activation(c, "activation_function", gelu),
        c.probability("resid_pdrop", 0.1),
        c.probability("attn_pdrop", 0.1),
    )


def num_positions(c: Config) -> int:
    """Rows of the table of positions."""
    return c.size(alias(c, "n_positions", "max_position_embeddings"), 1024)


def assemble(
    c: Config, family: str, model: Stem, block: Module, enter: Callable[[Ops, Tensor], tuple[Tensor, Any]]
) -> ModelSpec:
    """The model around its blocks, entered by `enter`."""
    vocab, hidden = model.wte.weight.shape
    stem, head = Module(), Linear(hidden, vocab)
    if c.flag("tie_word_embeddings", True):
        head.weight = model.wte.weight
    stem.add("transformer", model)
    stem.add("lm_head", head)

    def leave(t: Ops, x: Tensor) -> Tensor:
        return t.call("transformer.ln_f", model.ln_f, x)  # type: ignore[no-any-return]

    return ModelSpec(
        family=family,
        stem=stem,
        runs=[BlockRun(block, c.count(alias(c, "n_layer", "num_hidden_layers"), 12), 0, "transformer.h")],
        enter=enter,
        leave=leave,
        head=head,
        head_path="lm_head",
        vocab_size=vocab,
        max_seq_len=model.wpe.weight.shape[0],
        attention_targets=("c_attn", "attn.c_proj"),
        mlp_targets=("c_fc", "mlp.c_proj"),
        keeps_first_input=False,
    )


def build(c: Config) -> ModelSpec:
    """A GPT-2, from its config."""
    s = shape(c)
    model = Stem(c.size("vocab_size", 50257), num_positions(c), s.hidden)
    embed_dropout = c.probability("embd_pdrop", 0.1)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, Given]:
        batch, length = ids.shape
        words = t.call("transformer.wte", model.wte, ids)
        at = position_ids(t, length)
        places = t.call("transformer.wpe", model.wpe, at)
        t.keep(words, places)
        x = t.add(words, places)
        if t.attention == "eager" and not t.behaviour.causal_mask_added:  # padding alone is left to add
            mask = t.new((batch, 1, 1, length), batch * length, words.dtype, "mul")
        else:
            mask = attention_mask(t, batch, length, words.dtype)
        return t.dropout(x, embed_dropout), (mask, at if t.behaviour.blocks_take_positions else None)

    return assemble(c, "gpt2", model, Block(s, Attention(s), MLP(s)), enter)
