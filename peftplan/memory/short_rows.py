"""A long row of blocks made short, where it repeats itself, for whoever plays every block of it.

Of every stretch that repeats a unit of blocks, the first two units stay, one from the middle and the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from peftplan.specs.model import BlockRun

_PLAYED_UNITS = 4
_MIDDLE = 2
_LONGEST_UNIT = 12


@dataclass(frozen=True, slots=True)
class Stretch:
    """Visits `begin` to `end` of the short row are the unit in the middle, which stands for `copies` more."""

    begin: int
    end: int
    copies: int


def shortened(runs: Sequence[BlockRun]) -> tuple[list[BlockRun], list[Stretch]]:
    """The runs to play, and where units were left out."""
    visits = [(number, index) for number, run in enumerate(runs) for index in range(run.count)]
    kinds = []
    for number, index in visits:
        run = runs[number]
        kinds.append((id(run.block), run.apart, run.path, id(run.before) if run.before and not index else 0))
    kept: list[tuple[int, int]] = []
    stretches = []
    at = 0
    while at < len(kinds):
        period, units = _repeats(kinds, at)
        left_out = units - _PLAYED_UNITS
        if left_out <= 0:
            kept.append(visits[at])
            at += 1
            continue
        begin = len(kept) + _MIDDLE * period
        stretches.append(Stretch(begin, begin + period, left_out))
        first, last = (_MIDDLE + 1) * period, (units - _PLAYED_UNITS + _MIDDLE + 1) * period
        kept += visits[at : at + first] + visits[at + last : at + units * period]
        at += units * period
    return _regrouped(runs, kept), stretches


def _repeats(kinds: Sequence[object], at: int) -> tuple[int, int]:
    """The unit that repeats from here, as its length, and how often it stands there: what leaves out most."""
    best = (1, 1)
    most = 0
    for period in range(1, min(_LONGEST_UNIT, len(kinds) - at) + 1):
        end = at + period
        while end < len(kinds) and kinds[end] == kinds[end - period]:
            end += 1
        units = (end - at) // period
        if (units - _PLAYED_UNITS) * period > most:
            best, most = (period, units), (units - _PLAYED_UNITS) * period
    return best


def _regrouped(runs: Sequence[BlockRun], kept: Sequence[tuple[int, int]]) -> list[BlockRun]:
    """Runs of the blocks that are kept, each under its own index."""
    found: list[BlockRun] = []
    last = (-1, -1)
    for number, index in kept:
        run = runs[number]
        if last == (number, index - 1):
            found[-1] = replace(found[-1], count=found[-1].count + 1)
        else:
            before = None if index else run.before
            found.append(replace(run, count=1, first_index=run.first_index + index, before=before))
        last = (number, index)
    return found
