"""Intervals around predicted bytes: what measured runs of like kind differed by, and the context's own spread.

Split-conformal: the sizes of the residuals `measured / predicted - 1` of configurations, each counted once, are
ranked, and the interval reaches as far, on both sides, as the rank that the stated coverage asks for. Kinds of
run that were measured too seldom, or on other generations of GPUs only, take the residuals of all kinds, widened.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftplan.catalog.residuals import Residuals, coverage, fit_date, residuals
from peftplan.memory.overheads import Context


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where a figure is expected to lie, how often, and on what ground."""

    low_bytes: int
    high_bytes: int
    coverage: float
    basis: str


def kind_of_run(frozen_base: bool, packed: bool) -> str:
    """The kind of a run, as its residuals are grouped: what trains, and whether the base is packed."""
    if not frozen_base:
        return "full"
    return "packed" if packed else "adapters"


def around(metric: str, kind: str, predicted_bytes: int, compute_capability: tuple[int, int]) -> Bounds:
    """Around an allocator's figure, `allocated` or `reserved`, on a generation of GPUs."""
    found = residuals(metric, kind, compute_capability)
    reach = round(predicted_bytes * found.half_frac)
    return Bounds(max(predicted_bytes - reach, 0), predicted_bytes + reach, coverage(), _words(metric, found))


def around_device(kind: str, reserved_bytes: int, outside: Context, compute_capability: tuple[int, int]) -> Bounds:
    """Around the process on the device: reserved (and paged) bytes, and the context's own spread."""
    inside = around("reserved", kind, reserved_bytes, compute_capability)
    return Bounds(
        inside.low_bytes + outside.low_bytes,
        inside.high_bytes + outside.high_bytes,
        inside.coverage,
        f"{inside.basis}; {outside.basis}",
    )


def is_certain(fits: bool, low_bytes: int, high_bytes: int, usable_bytes: int) -> bool:
    """Whether an interval lies on one side of a card's capacity, and the verdict with it.

    A run whose cache alone exceeds the card may fit: it is no certain answer.
    """
    return high_bytes <= usable_bytes or (low_bytes > usable_bytes and not fits)


def _words(metric: str, found: Residuals) -> str:
    ground = f"measured {metric} of {found.configurations} configurations up to {fit_date()}"
    return ground if found.measured else f"{ground}, none or few of this kind of run on this kind of GPU: widened"
