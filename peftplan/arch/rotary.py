"""Rotary position embedding: the table made once per step, and its application to queries and keys."""

from __future__ import annotations

from peftplan.specs.formats import FP32, INT64
from peftplan.specs.modules import Module, Ops
from peftplan.specs.tensors import Parameter, Tensor

# cosines, sines, and the position ids they were made from
Table = tuple[Tensor, ...]


class RotaryEmbedding(Module):
    """Cosines and sines [batch or 1, length, dim] in the type of the hidden states (5.x keeps two buffers)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.inv_freq = Parameter((dim // 2,), FP32, role="buffer")
        self.original_inv_freq = Parameter((dim // 2,), FP32, role="buffer")

    def table(self, t: Ops, x: Tensor, position_ids: Tensor) -> Table:
        """Compute both tables without a graph, as transformers does."""
        length = position_ids.shape[-1]
        half, full = (1, length, self.dim // 2), (1, length, self.dim)
        with t.no_grad():
            positions = t.new((1, length), length, FP32, "_to_copy")
            freqs = t.new(half, length * self.dim // 2, FP32, "mul")
            del positions
            emb = t.new(full, length * self.dim, FP32, "cat")
            cos = t.mul_scalar(t.new(full, length * self.dim, FP32, "cos"))
            sin = t.mul_scalar(t.new(full, length * self.dim, FP32, "sin"))
            del freqs, emb
            cos = t.to(cos, x.dtype)
            sin = t.to(sin, x.dtype)
        return cos, sin


def position_ids(t: Ops, length: int) -> Tensor:
    """arange(length) plus the number of tokens seen before."""
    steps = t.new((length,), length, INT64, "arange")
    out: Tensor = t.new((length,), length, INT64, "add")
    del steps
    return t.view(out, (1, length))  # type: ignore[no-any-return]


def rotate_half(t: Ops, x: Tensor) -> Tensor:
    """(-x2, x1) of the two halves of the last dimension."""
    half = (*x.shape[:-1], x.shape[-1] // 2)
    x1 = t.slice(x, half)
    x2 = t.slice(x, half)
    return t.cat((t.neg(x2), x1), x.shape)  # type: ignore[no-any-return]


def rotate(t: Ops, x: Tensor, table: Table) -> Tensor:
    """x * cos + rotate_half(x) * sin for [batch, heads, length, dim]."""
    cos, sin = table[:2]
    wide = (1, 1, *cos.shape[1:])
    cos, sin = t.view(cos, wide), t.view(sin, wide)
    return t.add(t.mul(x, cos), t.mul(rotate_half(t, x), sin))  # type: ignore[no-any-return]
