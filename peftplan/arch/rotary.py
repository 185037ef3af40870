"""Rotary position embedding: the table made once per step, and its application to queries and keys."""

from __future__ import annotations

from peftplan.arch.config import Config
from peftplan.specs.formats import FP32, INT64
from peftplan.specs.modules import Module, Ops
from peftplan.specs.tensors import Parameter, Tensor

# cosines, sines, and the position ids they were made from
Table = tuple[Tensor, ...]


class RotaryEmbedding(Module):
    """Cosines and sines [batch or 1, length, dim] in the type of the hidden states (5.x keeps two buffers)."""

    def __init__(self, dim: int, two_sets: bool = False) -> None:
        super().__init__()
        self.dim = dim
        self.inv_freq = Parameter((dim // 2,), FP32, role="buffer")
        self.original_inv_freq = Parameter((dim // 2,), FP32, role="buffer")
        if two_sets:  # longrope makes those for long sequences in its first forward pass, and keeps them
            self.long_inv_freq = Parameter((dim // 2,), FP32, role="buffer")

    def table(self, t: Ops, x: Tensor, position_ids: Tensor) -> Table:
        """Compute both tables without a graph, as transformers does."""
        length = position_ids.shape[-1]
        half, full = (1, length, self.dim // 2), (1, length, self.dim)
        with t.no_grad():
            positions = t.new((1, length), length, FP32, "_to_copy")
            freqs = t.new(half, length * self.dim // 2, FP32, "mul")
            if not t.behaviour.rotary_product:  # which names its factors
                del positions
            emb = t.new(full, length * self.dim, FP32, "cat")
            cos = t.mul_scalar(t.new(full, length * self.dim, FP32, "cos"))
            sin = t.mul_scalar(t.new(full, length * self.dim, FP32, "sin"))
            del freqs, emb
            cos = t.to(cos, x.dtype)
            sin = t.to(sin, x.dtype)
        return cos, sin


def position_ids(t: Ops, length: int) -> Tensor:
    """arange(length) plus the number of tokens seen before, or what the batch brings along."""
    given: Tensor | None = t.given_positions()
    if given is not None:
        return given
    out: Tensor = t.new((length,), length, INT64, "arange")
    if t.behaviour.positions_offset:
        out = t.new((length,), length, INT64, "add")
    return t.view(out, (1, length))  # type: ignore[no-any-return]


def cache_positions(t: Ops, length: int) -> Tensor | None:
    """arange(length), which older releases hand to every block."""
    return t.new((length,), length, INT64, "arange") if t.behaviour.cache_positions else None


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


def split_head(t: Ops, x: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """The dimensions of each head that are rotated, and the rest."""
    width, dim = x.shape[-1], table[0].shape[-1]
    front, rest = (*x.shape[:-1], dim), (*x.shape[:-1], width - dim)
    return (t.slice(x, front) if dim < width else t.alias(x)), t.slice(x, rest)


def has_two_sets(c: Config) -> bool:
    """Whether positions are scaled as longrope does: one set of frequencies for short sequences, one for long."""
    scaling = c.section("rope_parameters") or c.section("rope_scaling")
    kind = (scaling.get("rope_type") or scaling.get("type")) if scaling is not None else None
    return kind in ("longrope", "su")


def rotary_width(c: Config, head_dim: int, key: str, default: float) -> int:
    """How many dimensions of a head are rotated; `key` is the family's own name for the share."""
    parameters = c.section("rope_parameters") or c.section("rope_scaling")
    if parameters is not None and parameters.get("partial_rotary_factor") is not None:
        c, key = parameters, "partial_rotary_factor"
    share = c.number(key, default)
    if not 0.0 < share <= 1.0:
        raise c.fail(key, share, "a share above 0 and up to 1")
    return 2 * -(-int(head_dim * share) // 2)
