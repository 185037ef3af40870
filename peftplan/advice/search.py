"""Searches over answers that only trying finds out: the largest whole number that still does."""

from __future__ import annotations

from collections.abc import Callable

# Above a boundary, so many further values are tried: kernels that want whole multiples of 8 need a little less
# on them, so that a value may do again behind one that does not.
NEIGHBOURS = 8


def largest(does: Callable[[int], bool], start: int, most: int) -> int | None:
    """The largest value from 1 to `most` that does, found from `start`; None if none was found down to 1.

    Doubles away from `start`, then halves the gap, so the value above the answer has been tried and does
    not do. What does again further above, behind more than `NEIGHBOURS` values that do not, is not seen.
    """
    low = _first_below(does, min(start, most))
    if low is None:
        return None
    while True:
        low = _climb(does, low, most)
        again = [value for value in range(low + 2, min(low + NEIGHBOURS, most) + 1) if does(value)]
        if not again:
            return low
        low = again[-1]


def _first_below(does: Callable[[int], bool], start: int) -> int | None:
    """The first value that does on the way from `start` down to 1, by halves."""
    value = start
    while value and not does(value):
        value //= 2
    return value or None


def _climb(does: Callable[[int], bool], low: int, most: int) -> int:
    """A value from `low`, which does, upwards, whose next does not: or `most`."""
    high = low
    while high == low:
        if low == most:
            return low
        high = min(2 * low, most)
        if does(high):
            low = high
    while high - low > 1:
        middle = (low + high) // 2
        if does(middle):
            low = middle
        else:
            high = middle
    return low
