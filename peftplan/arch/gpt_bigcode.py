"""GPT-BigCode (SantaCoder, StarCoder): GPT-2 with linears, and one head of keys and values for all queries.

Source: transformers 5.23 modeling_gpt_bigcode.py, configuration_gpt_bigcode.py.
"""

from __future__ import annotations

from peftplan.arch import gpt2
from peftplan.arch.config import Config
from peftplan.arch.masks import attention_mask
from peftplan.arch.rotary import position_ids
from peftplan.specs.cache import cached_heads
from peftplan.specs.formats import BOOL
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


def biased(inputs: int, outputs: int) -> Linear:
    """A linear with a bias."""
    return Linear(inputs, outputs, True)


class Attention(Module):
    """Self-attention whose three projections are one linear."""

    def __init__(self, s: gpt2.Shape, kv_heads: int) -> None:
        super().__init__()
        self.s, self.kv_heads = s, kv_heads
        self.c_attn = biased(s.hidden, s.hidden + 2 * kv_heads * (s.hidden // s.heads))
        self.c_proj = biased(s.hidden, s.hidden)
        self.caches = cached_heads(kv_heads, s.hidden // s.heads, s.heads)

    def forward(self, t: Ops, x: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[override]
        s = self.s
        batch, length, width = x.shape
        dim = width // s.heads
        keys = (batch, length, self.kv_heads * dim)
        q, k, v = t.split(t.call("c_attn", self.c_attn, x), [x.shape, keys, keys])
        q = t.view(q, (batch, s.heads, length, dim))
        k, v = (t.view(part, (batch, self.kv_heads, length, dim)) for part in (k, v))
        out = t.attend(q, k, v, mask, s.attn_dropout)
        out = t.view(out, x.shape)
        out = t.call("c_proj", self.c_proj, out)
        return t.dropout(out, s.resid_dropout)  # type: ignore[no-any-return]


class Block(gpt2.Block):
    """GPT-2's, which is handed its mask by name."""

    positional = ()


class Stem(gpt2.Stem):
    """Beside GPT-2's, a causal mask of the longest sequence."""

    def __init__(self, vocab: int, positions: int, hidden: int) -> None:
        super().__init__(vocab, positions, hidden)
        self.bias = Parameter((positions, positions), BOOL, role="buffer")


def build(c: Config) -> ModelSpec:
    """A GPT-BigCode, from its config."""
    s = gpt2.shape(c, "gelu_pytorch_tanh")
    kv_heads = 1 if c.flag("multi_query", True) else s.heads
    model = Stem(c.size("vocab_size", 50257), gpt2.num_positions(c), s.hidden)
    embed_dropout = c.probability("embd_pdrop", 0.1)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, gpt2.Given]:
        batch, length = ids.shape
        words = t.call("transformer.wte", model.wte, ids)
        at = position_ids(t, length)
        mask = attention_mask(t, batch, length, words.dtype)
        places = t.call("transformer.wpe", model.wpe, at)
        t.keep(words, places, at)
        x = t.add(words, places)
        return t.dropout(x, embed_dropout), (mask, None)

    block = Block(s, Attention(s, kv_heads), gpt2.MLP(s, biased))
    spec = gpt2.assemble(c, "gpt_bigcode", model, block, enter)
    spec.hands_positions = False
    return spec
