"""Searches over answers that only trying finds out: the largest whole number that still does."""

from __future__ import annotations

from collections.abc import Callable

# Kernels that want whole multiples of this need a little less on them: behind a value that does not do, the next
# multiple may do again.
ALIGNMENT = 8


def largest(does: Callable[[int], bool], start: int, most: int, step: int = 1) -> int | None:
    """The largest value from 1 to `most` that does, found from `start`; None if none was found down to 1.

    Steps away from `start` double, from the first one given; then the gap is halved, so the value above the answer
    has been tried and does not do, nor does the multiple of `ALIGNMENT` behind it. What does again further above is
    not seen.
    """
    low = _first_below(does, min(start, most), step)
    if low is None:
        return None
    while True:
        low = _climb(does, low, most, step)
        aligned = (low // ALIGNMENT + 1) * ALIGNMENT
        if aligned > most or not does(aligned):
            return low
        low, step = aligned, 1


def _first_below(does: Callable[[int], bool], start: int, step: int) -> int | None:
    """A value that does, at `start` or below it, in steps that double; the last one is 1."""
    value = start
    while not does(value):
        if value == 1:
            return None
        value, step = max(value - step, 1), 2 * step
    return value


def _climb(does: Callable[[int], bool], low: int, most: int, step: int) -> int:
    """A value from `low`, which does, upwards, whose next does not: or `most`."""
    high = low
    while high == low:
        if low == most:
            return low
        high, step = min(low + step, most), 2 * step
        if does(high):
            low = high
    while high - low > 1:
        middle = (low + high) // 2
        if does(middle):
            low = middle
        else:
            high = middle
    return low
