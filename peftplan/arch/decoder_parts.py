"""Parts of the Llama-like decoders: norms, embeddings, attention, MLPs and blocks.

Sources: transformers 5.23 modeling_llama.py, modeling_qwen3.py (norms over heads), modeling_gemma2.py and
modeling_gemma3.py (fp32 norms around 1, scaled embeddings, four norms a block), modeling_phi3.py (fused
projections), modeling_granite.py (scaled residuals).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from peftplan.arch.former_masks import windowed_copy
from peftplan.arch.rotary import RotaryEmbedding, Table, rotate, split_head
from peftplan.specs.cache import cached_heads
from peftplan.specs.formats import BF16, FP32, DType
from peftplan.specs.modules import Embedding, Linear, Module, Ops, RMSNorm
from peftplan.specs.tensors import Parameter, Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes and switches of one decoder's blocks."""

    hidden: int
    heads: int
    kv_heads: int
    dim: int
    inner: int
    activation: str
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    attn_dropout: float = 0.0
    resid_dropout: float = 0.0
    norm: Callable[[int], Module] = RMSNorm
    head_norms: str = ""  # "projected": right behind each projection; "together": after all three
    score_cap: bool = False
    scaled_residual: bool = False
    names_attended: bool = False  # older releases hold what attention gave until the block ends


FULL, SLIDING = "full_attention", "sliding_attention"


class Given(NamedTuple):
    """What a block is given beside the hidden states."""

    table: Table
    mask: Tensor | None
    others: Sequence[Table] = ()  # tables that a block is given too, and does not read
    window: int | None = None  # how many keys a query sees


class CenteredRMSNorm(Module):
    """Gemma's RMSNorm: all of it in fp32, scaled by one plus the weight."""

    def __init__(self, width: int, dtype: DType = BF16) -> None:
        super().__init__()
        self.weight = Parameter((width,), dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        out = self._normed(t, t.to(x, FP32))
        out = t.mul(out, t.add_scalar(t.to(self.weight, FP32)))
        return t.to(out, x.dtype)  # type: ignore[no-any-return]

    @staticmethod
    def _normed(t: Ops, x: Tensor) -> Tensor:
        return t.mul(x, t.rsqrt(t.add_scalar(t.mean_last(t.pow(x)))))  # type: ignore[no-any-return]


class ScaledEmbedding(Embedding):
    """Gemma's table of tokens: its rows times a number kept in a buffer."""

    def __init__(self, rows: int, width: int, dtype: DType = BF16) -> None:
        super().__init__(rows, width, dtype)
        self.embed_scale = Parameter((), dtype, role="buffer")

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        return t.embedding(x, self.weight, self.embed_scale)  # type: ignore[no-any-return]


class Attention(Module):
    """Self-attention with grouped keys and values and rotary positions."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.q_proj = Linear(s.hidden, s.heads * s.dim, s.qkv_bias)
        self.k_proj = Linear(s.hidden, s.kv_heads * s.dim, s.qkv_bias)
        self.v_proj = Linear(s.hidden, s.kv_heads * s.dim, s.qkv_bias)
        self.o_proj = Linear(s.heads * s.dim, s.hidden, s.out_bias)
        self.caches = cached_heads(s.kv_heads, s.dim, s.heads)
        if s.head_norms:
            self.q_norm, self.k_norm = s.norm(s.dim), s.norm(s.dim)

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        s = self.s
        batch, length, _ = x.shape
        heads, kv_heads = (batch, s.heads, length, s.dim), (batch, s.kv_heads, length, s.dim)
        if s.head_norms == "projected":
            q = t.call("q_norm", self.q_norm, t.split_heads(t.call("q_proj", self.q_proj, x), heads))
            k = t.call("k_norm", self.k_norm, t.split_heads(t.call("k_proj", self.k_proj, x), kv_heads))
        else:
            q = t.split_heads(t.call("q_proj", self.q_proj, x), heads)
            k = t.split_heads(t.call("k_proj", self.k_proj, x), kv_heads)
        v = t.split_values(t.call("v_proj", self.v_proj, x), kv_heads, s.heads, given.mask)
        if s.head_norms == "together":
            q = t.call("q_norm", self.q_norm, q)
            k = t.call("k_norm", self.k_norm, k)
        table = layer_table(t, self, v, given.table)
        q, k = rotate_pair(t, q, k, table)
        k, v = t.repeat_first(q, k, v)
        out = t.attend(q, k, v, given.mask, s.attn_dropout, softcap=s.score_cap, window=given.window, split=True)
        out = t.view(out, (batch, length, s.heads * s.dim))
        out = t.call("o_proj", self.o_proj, out)
        return out  # type: ignore[no-any-return]


def layer_table(t: Ops, attention: Module, v: Tensor, table: Table) -> Table:
    """The tables that the model made, or those that an attention with frequencies of its own makes."""
    if t.behaviour.rotary_place != "layers":
        return table
    rotary: RotaryEmbedding = attention.children["rotary_emb"]  # type: ignore[assignment]
    return (*rotary.table(t, v, table[-1]), table[-1])


def rotate_pair(t: Ops, q: Tensor, k: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Both rotated; the unrotated ones live until the pair is returned."""
    return rotate(t, q, table), rotate(t, k, table)


class FusedAttention(Module):
    """Phi-3's attention: one matrix for queries, keys and values, rotary on each head or a part of it."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.o_proj = Linear(s.heads * s.dim, s.hidden)
        self.qkv_proj = Linear(s.hidden, (s.heads + 2 * s.kv_heads) * s.dim)
        self.caches = cached_heads(s.kv_heads, s.dim, s.heads)

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        s = self.s
        batch, length, _ = x.shape
        qkv = t.call("qkv_proj", self.qkv_proj, x)
        width, kv_width = (batch, length, s.heads * s.dim), (batch, length, s.kv_heads * s.dim)
        q, k, v = t.slice(qkv, width), t.slice(qkv, kv_width), t.slice(qkv, kv_width)
        heads, kv_heads = (batch, s.heads, length, s.dim), (batch, s.kv_heads, length, s.dim)
        q, k = t.split_heads(q, heads), t.split_heads(k, kv_heads)
        v = t.split_values(v, kv_heads, s.heads, given.mask)
        table, joined = layer_table(t, self, v, given.table), not t.behaviour.attention_inline
        q, k = (rotate_parts if joined else rotate_pair)(t, q, k, table)
        k, v = t.repeat_first(q, k, v)
        out = t.attend(q, k, v, given.mask, s.attn_dropout, by_heads=joined, window=given.window, split=True)
        out = t.view(out, width)
        out = t.call("o_proj", self.o_proj, out)
        return out  # type: ignore[no-any-return]


def rotate_parts(t: Ops, q: Tensor, k: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """The front of each head rotated and joined with the rest, which may be empty."""
    q_front, q_rest = split_head(t, q, table)
    k_front, k_rest = split_head(t, k, table)
    q_out = t.cat((rotate(t, q_front, table), q_rest), q.shape)
    k_out = t.cat((rotate(t, k_front, table), k_rest), k.shape)
    return q_out, k_out


class GatedMLP(Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, hidden: int, intermediate: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = Linear(hidden, intermediate, bias)
        self.up_proj = Linear(hidden, intermediate, bias)
        self.down_proj = Linear(intermediate, hidden, bias)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        product = t.mul(
            t.activation(t.call("gate_proj", self.gate_proj, x), self.activation),
            t.call("up_proj", self.up_proj, x),
        )
        return t.call("down_proj", self.down_proj, product)  # type: ignore[no-any-return]


class FusedMLP(Module):
    """Phi-3's gated MLP: one matrix for both branches, whose views live until the end."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.gate_up_proj = Linear(s.hidden, 2 * s.inner)
        self.down_proj = Linear(s.inner, s.hidden)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        up = t.call("gate_up_proj", self.gate_up_proj, x)
        half = (*up.shape[:-1], self.s.inner)
        gate, up = t.split(up, (half, half))
        up = t.mul(up, t.activation(gate, self.s.activation))
        return t.call("down_proj", self.down_proj, up)  # type: ignore[no-any-return]


class Block(Module):
    """Attention and MLP, each behind a norm and beside a residual.

    `kind` names the blocks of this kind where a model has several: it picks what they are given.
    """

    def __init__(self, s: Shape, attention: Module, mlp: Module, kind: str = "") -> None:
        super().__init__()
        self.s, self.kind = s, kind
        self.self_attn = attention
        self.mlp = mlp
        self.input_layernorm = s.norm(s.hidden)
        self.post_attention_layernorm = s.norm(s.hidden)

    def takes(self, given: Any) -> Any:
        """The tables and the mask of this kind of layer."""
        return given[self.kind]

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        residual = x
        x = t.call("input_layernorm", self.input_layernorm, x)
        x = attended = t.call("self_attn", self.self_attn, x, given)
        if not (self.s.names_attended and t.behaviour.attention_inline):
            del attended
        x = t.add(residual, self._scaled(t, x))
        residual = x
        x = t.call("post_attention_layernorm", self.post_attention_layernorm, x)
        x = t.call("mlp", self.mlp, x)
        return t.add(residual, self._scaled(t, x))  # type: ignore[no-any-return]

    def _scaled(self, t: Ops, x: Tensor) -> Tensor:
        if self.s.scaled_residual:
            return t.mul_scalar(x)  # type: ignore[no-any-return]
        return t.dropout(x, self.s.resid_dropout)  # type: ignore[no-any-return]


class SandwichBlock(Block):
    """Gemma 2's and 3's block: a norm before and another behind attention and MLP."""

    def __init__(self, s: Shape, attention: Module, mlp: Module, kind: str = "") -> None:
        super().__init__(s, attention, mlp, kind)
        self.pre_feedforward_layernorm = s.norm(s.hidden)
        self.post_feedforward_layernorm = s.norm(s.hidden)

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        if self.kind == SLIDING and given.mask is not None and t.behaviour.float_masks and t.attention != "flash":
            given = given._replace(mask=windowed_copy(t, given.mask))
        residual = x
        x = t.call("input_layernorm", self.input_layernorm, x)
        x = t.call("self_attn", self.self_attn, x, given)
        x = t.call("post_attention_layernorm", self.post_attention_layernorm, x)
        x = t.add(residual, x)
        residual = x
        x = t.call("pre_feedforward_layernorm", self.pre_feedforward_layernorm, x)
        x = t.call("mlp", self.mlp, x)
        x = t.call("post_feedforward_layernorm", self.post_feedforward_layernorm, x)
        return t.add(residual, x)  # type: ignore[no-any-return]


class KindsRotaryEmbedding(RotaryEmbedding):
    """Gemma 3's rotary frequencies: a pair of buffers for each kind of layer."""

    def __init__(self, dim: int, kinds: Sequence[str]) -> None:
        super().__init__(dim)
        del self.parameters["inv_freq"], self.parameters["original_inv_freq"]
        for kind in kinds:
            for name in ("inv_freq", "original_inv_freq"):
                buffer = Parameter((dim // 2,), FP32, role="buffer")
                setattr(self, f"{kind}_{name}", buffer)


class DecoderStem(Module):
    """What stands outside a Llama-like's blocks, under `model.`."""

    def __init__(
        self,
        vocab: int,
        hidden: int,
        dim: int,
        embedding: type[Embedding] = Embedding,
        norm: Callable[[int], Module] = RMSNorm,
        rotary: RotaryEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.embed_tokens = embedding(vocab, hidden)
        self.norm = norm(hidden)
        self.rotary_emb = rotary or RotaryEmbedding(dim)
