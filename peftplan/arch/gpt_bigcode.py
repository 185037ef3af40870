"""GPT-BigCode (SantaCoder, StarCoder): GPT-2 with linears, and one head of keys and values for all queries.

Source: transformers 5.23 modeling_gpt_bigcode.py, configuration_gpt_bigcode.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftplan.arch.config import Config, activation, alias
from peftplan.arch.masks import attention_mask
from peftplan.arch.rotary import position_ids
from peftplan.specs.formats import BOOL
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, LayerNorm, Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """A GPT-BigCode's sizes and dropout probabilities."""

    hidden: int
    heads: int
    kv_heads: int
    inner: int
    activation: str
    resid_dropout: float
    attn_dropout: float


class Attention(Module):
    """Self-attention whose three projections are one linear."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.c_attn = Linear(s.hidden, s.hidden + 2 * s.kv_heads * (s.hidden // s.heads), True)
        self.c_proj = Linear(s.hidden, s.hidden, True)

    def forward(self, t: Ops, x: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[override]
        s = self.s
        batch, length, width = x.shape
        dim = width // s.heads
        keys = (batch, length, s.kv_heads * dim)
        q, k, v = t.split(t.call("c_attn", self.c_attn, x), [x.shape, keys, keys])
        q = t.view(q, (batch, s.heads, length, dim))
        k, v = (t.view(part, (batch, s.kv_heads, length, dim)) for part in (k, v))
        out = t.attend(q, k, v, mask, s.attn_dropout)
        out = t.view(out, x.shape)
        out = t.call("c_proj", self.c_proj, out)
        return t.dropout(out, s.resid_dropout)  # type: ignore[no-any-return]


class MLP(Module):
    """c_proj(act(c_fc(x))), then dropout."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.c_fc = Linear(s.hidden, s.inner, True)
        self.c_proj = Linear(s.inner, s.hidden, True)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        x = t.call("c_fc", self.c_fc, x)
        x = t.activation(x, self.s.activation)
        x = t.call("c_proj", self.c_proj, x)
        return t.dropout(x, self.s.resid_dropout)  # type: ignore[no-any-return]


class Block(Module):
    """Attention and MLP, each behind a LayerNorm and beside a residual."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(s.hidden)
        self.attn = Attention(s)
        self.ln_2 = LayerNorm(s.hidden)
        self.mlp = MLP(s)

    def forward(self, t: Ops, x: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[override]
        residual = x
        x = t.call("ln_1", self.ln_1, x)
        attended = t.call("attn", self.attn, x, mask)
        x = t.add(attended, residual)
        residual = x
        x = t.call("ln_2", self.ln_2, x)
        fed = t.call("mlp", self.mlp, x)
        return t.add(residual, fed)  # type: ignore[no-any-return]


class Stem(Module):
    """Tables of tokens and positions, the last norm, and a causal mask of the longest sequence."""

    def __init__(self, vocab: int, positions: int, hidden: int) -> None:
        super().__init__()
        self.wte = Embedding(vocab, hidden)
        self.wpe = Embedding(positions, hidden)
        self.ln_f = LayerNorm(hidden)
        self.bias = Parameter((positions, positions), BOOL, role="buffer")


def shape(c: Config) -> Shape:
    """The sizes, under either of the names that configs give them."""
    width_key, heads_key = alias(c, "n_embd", "hidden_size"), alias(c, "n_head", "num_attention_heads")
    hidden, heads = c.size(width_key, 768), c.count(heads_key, 12)
    c.divides(heads_key, heads, width_key, hidden)
    if c.flag("add_cross_attention"):
        raise c.fail("add_cross_attention", True, "false: a decoder without an encoder")
    return Shape(
        hidden,
        heads,
        1 if c.flag("multi_query", True) else heads,
        c.size("n_inner", 4 * hidden),
        activation(c, "activation_function", "gelu_pytorch_tanh"),
        c.probability("resid_pdrop", 0.1),
        c.probability("attn_pdrop", 0.1),
    )


def build(c: Config) -> ModelSpec:
    """A GPT-BigCode, from its config."""
    s = shape(c)
    vocab = c.size("vocab_size", 50257)
    positions = c.size(alias(c, "n_positions", "max_position_embeddings"), 1024)
    embed_dropout = c.probability("embd_pdrop", 0.1)
    stem, model = Module(), Stem(vocab, positions, s.hidden)
    head = Linear(s.hidden, vocab)
    if c.flag("tie_word_embeddings", True):
        head.weight = model.wte.weight
    stem.add("transformer", model)
    stem.add("lm_head", head)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        batch, length = ids.shape
        words = t.call("transformer.wte", model.wte, ids)
        at = position_ids(t, length)
        mask = attention_mask(t, batch, length, words.dtype)
        places = t.call("transformer.wpe", model.wpe, at)
        t.keep(words, places, at)
        x = t.add(words, places)
        return t.dropout(x, embed_dropout), mask

    def leave(t: Ops, x: Tensor) -> Tensor:
        return t.call("transformer.ln_f", model.ln_f, x)  # type: ignore[no-any-return]

    return ModelSpec(
        family="gpt_bigcode",
        stem=stem,
        runs=[BlockRun(Block(s), c.count(alias(c, "n_layer", "num_hidden_layers"), 12), 0, "transformer.h")],
        enter=enter,
        leave=leave,
        head=head,
        head_path="lm_head",
        vocab_size=vocab,
        max_seq_len=positions,
        attention_targets=("c_attn", "attn.c_proj"),
        mlp_targets=("c_fc", "mlp.c_proj"),
        keeps_first_input=False,
    )
