"""DeepSeek's latent attention: keys and values from a narrow latent, and a rotated part all heads share.

Source: transformers 5.23 modeling_deepseek_v2.py, modeling_deepseek_v3.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peftplan.arch.rotary import RotaryEmbedding, Table, rotate
from peftplan.arch.sparse_decoder import Taken
from peftplan.specs.cache import Cached, Expansion
from peftplan.specs.formats import FP32
from peftplan.specs.modules import Linear, Module, Ops, RMSNorm
from peftplan.specs.tensors import Tensor

# rotates the query's and the key's part
Rotation = Callable[[Ops, Tensor, Tensor, Table], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Latent:
    """Widths of latent attention; `q_rank` is None where queries are projected directly."""

    hidden: int
    heads: int
    q_rank: int | None
    kv_rank: int
    plain_dim: int  # qk_nope_head_dim: the part that carries no position
    rotary_dim: int
    value_dim: int
    bias: bool
    dropout: float

    @property
    def head_dim(self) -> int:
        """Width of a query or key."""
        return self.plain_dim + self.rotary_dim


class LatentAttention(Module):
    """Multi-head latent attention; the whole keys are laid out anew for every head."""

    def __init__(self, s: Latent, rotation: Rotation) -> None:
        super().__init__()
        self.s, self.rotation = s, rotation
        if s.q_rank is None:
            self.q_proj = Linear(s.hidden, s.heads * s.head_dim)
        else:
            self.q_a_proj = Linear(s.hidden, s.q_rank, s.bias)
            self.q_a_layernorm = RMSNorm(s.q_rank)
            self.q_b_proj = Linear(s.q_rank, s.heads * s.head_dim)
        self.kv_a_proj_with_mqa = Linear(s.hidden, s.kv_rank + s.rotary_dim, s.bias)
        self.kv_a_layernorm = RMSNorm(s.kv_rank)
        self.kv_b_proj = Linear(s.kv_rank, s.heads * (s.plain_dim + s.value_dim))
        self.o_proj = Linear(s.heads * s.value_dim, s.hidden, s.bias)
        outputs = s.heads * (s.plain_dim + s.value_dim)
        self.caches = Cached(
            s.kv_rank,
            s.rotary_dim,
            s.heads,
            s.head_dim,
            s.value_dim,
            expansion=Expansion(outputs, outputs + s.heads * s.head_dim, s.kv_rank + s.rotary_dim, s.kv_rank),
        )

    def queries(self, t: Ops, x: Tensor) -> Tensor:
        """The query projection, through its own latent where there is one."""
        if self.s.q_rank is None:
            return t.call("q_proj", self.q_proj, x)  # type: ignore[no-any-return]
        return t.call(  # type: ignore[no-any-return]
            "q_b_proj",
            self.q_b_proj,
            t.call("q_a_layernorm", self.q_a_layernorm, t.call("q_a_proj", self.q_a_proj, x)),
        )

    def forward(self, t: Ops, x: Tensor, given: Taken) -> Tensor:  # type: ignore[override]
        s, (batch, length, _) = self.s, x.shape
        table, mask = given
        lead = (batch, s.heads, length)
        q = t.permuted(self.queries(t, x), (*lead, s.head_dim))
        q_plain, q_rotated = t.split(q, ((*lead, s.plain_dim), (*lead, s.rotary_dim)))
        latents = t.call("kv_a_proj_with_mqa", self.kv_a_proj_with_mqa, x)
        latent, k_rotated = t.split(latents, ((batch, length, s.kv_rank), (batch, length, s.rotary_dim)))
        normed = t.call("kv_a_layernorm", self.kv_a_layernorm, latent)
        k_rotated = t.view(k_rotated, (batch, 1, length, s.rotary_dim))
        q_rotated, k_rotated = self.rotation(t, q_rotated, k_rotated, table)
        query = t.cat((q_plain, q_rotated), (*lead, s.head_dim))
        key, value = self.expand(t, normed, k_rotated)
        out = t.attend(query, key, value, mask, s.dropout, by_heads=True)
        out = t.view(out, (batch, length, s.heads * s.value_dim))
        out = t.call("o_proj", self.o_proj, out)
        return out  # type: ignore[no-any-return]

    def expand(self, t: Ops, latent: Tensor, k_rotated: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of every head; the values are views of the projection, which so stays whole."""
        s, (batch, length, _) = self.s, latent.shape
        lead = (batch, s.heads, length)
        both = t.permuted(t.call("kv_b_proj", self.kv_b_proj, latent), (*lead, s.plain_dim + s.value_dim))
        k_plain, value = t.split(both, ((*lead, s.plain_dim), (*lead, s.value_dim)))
        k_rotated = t.expand(k_rotated, (*lead, s.rotary_dim))
        key = t.new((*lead, s.head_dim), batch * s.heads * length * s.head_dim, both.dtype, "new_empty")
        key = t.copy_into(key, k_plain)
        key = t.copy_into(key, k_rotated)
        return key, value


class ComplexRotaryEmbedding(RotaryEmbedding):
    """DeepSeek-V2's: one table of complex numbers, kept here as pairs of fp32."""

    def table(self, t: Ops, x: Tensor, position_ids: Tensor) -> Table:
        """Compute the table without a graph."""
        length, dim = position_ids.shape[-1], self.dim
        half, full = (1, length, dim // 2), (1, length, dim)
        with t.no_grad():
            positions = t.new((1, length), length, FP32, "_to_copy")
            freqs = t.new(half, length * dim // 2, FP32, "mul")
            del positions
            ones = t.like(freqs, "ones_like")
            polar = t.new(full, length * dim, FP32, "polar")
            del ones
            return (t.like(polar, "mul"),)


def rotate_complex(t: Ops, q: Tensor, k: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Both read as complex numbers in fp32, multiplied, and brought back to their types."""
    high_q, high_k = t.to(q, FP32), t.to(k, FP32)
    turned_q = t.to(t.permuted(t.complex_mul(high_q, table[0]), q.shape), q.dtype)
    turned_k = t.to(t.complex_mul(high_k, table[0]), k.dtype)
    return turned_q, turned_k


def rotate_interleaved(t: Ops, q: Tensor, k: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Pairs that lie side by side turned by half a table: even and odd entries apart, joined by halves."""
    length, dim = table[0].shape[1:]
    cos, sin = (t.view(t.part(x, (1, length, dim // 2)), (1, 1, length, dim // 2)) for x in table[:2])
    half_q, half_k = (*q.shape[:-1], dim // 2), (*k.shape[:-1], dim // 2)
    q1, q2 = t.slice(q, half_q), t.slice(q, half_q)
    k1, k2 = t.slice(k, half_k), t.slice(k, half_k)
    turned_q = t.cat((t.sub(t.mul(q1, cos), t.mul(q2, sin)), t.add(t.mul(q2, cos), t.mul(q1, sin))), q.shape)
    turned_k = t.cat((t.sub(t.mul(k1, cos), t.mul(k2, sin)), t.add(t.mul(k2, cos), t.mul(k1, sin))), k.shape)
    return turned_q, turned_k


def rotate_halves(t: Ops, q: Tensor, k: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """As Llama does (`rope_interleave` false)."""
    return rotate(t, q, table), rotate(t, k, table)
