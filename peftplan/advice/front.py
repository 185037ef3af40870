"""Two axes at once: the combinations that fit and that no other one exceeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from peftplan.advice.ask import Variants
from peftplan.advice.axes import NUMBERS, largest_fitting
from peftplan.answers import Front, FrontPoint
from peftplan.methods import METHODS


def front_of(variants: Variants, axes: Sequence[str]) -> Front:
    """The combinations of two axes: one is gone through, the other one's largest value is searched for.

    Searched for is the last axis that is a number. The other goes through the powers of two and what was asked,
    or through the methods.
    """
    first, last = sorted(axes, key=lambda axis: axis in NUMBERS)
    points: list[FrontPoint] = []
    guess: int | None = None
    for value in _values(variants, first, last):
        found = largest_fitting(variants, last, {first: value}, guess)
        if found is None or found < NUMBERS[last]:
            continue
        # the next value of a number is about twice as much, and leaves half; another method leaves about as much
        guess = found if first not in NUMBERS else found // 2
        values = {first: value, last: found}
        points.append(
            FrontPoint.model_construct(
                values={axis: values[axis] for axis in axes}, fits_surely=variants.fits_surely(values)
            )
        )
    return Front.model_construct(axes=tuple(axes), points=tuple(_not_exceeded(points, first, last)))


def _values(variants: Variants, axis: str, last: str) -> Iterable[int | str]:
    """What the first axis goes through, up to its largest value beside the other one's least of interest."""
    if axis not in NUMBERS:
        return list(METHODS)
    asked = int(variants.asked(axis))
    most = largest_fitting(variants, axis, {last: NUMBERS[last]})
    return sorted(value for value in {asked, *_powers_of_two(NUMBERS[axis], most or 0)} if value <= (most or 0))


def _powers_of_two(least: int, most: int) -> Iterator[int]:
    while least <= most:
        yield least
        least *= 2


def _not_exceeded(points: Sequence[FrontPoint], first: str, last: str) -> Iterator[FrontPoint]:
    """Points that no further one reaches on both numbers; of methods, all."""
    for number, point in enumerate(points):
        rest = points[number + 1 :] if first in NUMBERS else ()
        if not any(other.values[last] >= point.values[last] for other in rest):  # type: ignore[operator]
            yield point
