"""Batches of a loop that sorts examples by length within buckets, and the steps that hold the most memory.

Legend: a bucket is as many examples as `bucket_batches` batches have, laid longest first; a window is the steps
between two calls of `torch.cuda.empty_cache`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import NamedTuple

from peftplan.specs.lengths import Lengths

# Windows replayed around the one that the share of steps falls on; those of one step are all but alike.
_WINDOWS_OF_ONE, _WINDOWS = 3, 9
_STEPS = 2  # of a window: what is reserved hardly grows once batches become shorter


@dataclass(frozen=True, slots=True)
class Bucketed:
    """How a loop takes its batches: `num_steps` of them, and the cache given back after every `emptied_every`."""

    lengths: Lengths
    bucket_batches: int
    num_steps: int
    emptied_every: int


class Window(NamedTuple):
    """Steps by the length of their batches [tokens]: of the window before, and the first of a window's own."""

    before: Sequence[int]
    own: Sequence[int]


def batch_lengths(batches: Bucketed, batch: int, seq_len: int) -> list[int]:
    """The longest example of every batch [tokens], in the order of training.

    Examples are drawn from the lengths' distribution, by a generator that always gives the same ones.
    """
    tokens = [min(length, seq_len) for length, _ in batches.lengths.counts]
    shares = list(accumulate(count for _, count in batches.lengths.counts))
    size = batch * batches.bucket_batches
    drawn = (tokens[bisect_left(shares, frac * shares[-1])] for frac in _draws())
    found: list[int] = []
    while len(found) < batches.num_steps:
        found += sorted(islice(drawn, size), reverse=True)[::batch]
    return found[: batches.num_steps]


def _draws() -> Iterator[float]:
    """Numbers between 0 and 1 as if at random, always the same: Park and Miller's minimal standard generator."""
    state, modulus = 1, 2147483647
    while True:
        state = state * 48271 % modulus
        yield state / modulus


def steps_at(longest: Sequence[int], batches: Bucketed, frac: float) -> tuple[list[Window], int]:
    """The windows around the one that the share `frac` of all steps falls on, and its place among them.

    A window is the lengths of its steps [tokens] that matter: of the window before it the longest and the last,
    whose outputs pin what they lie in when the cache is emptied, then its own first ones. Windows stand in order of
    their longest batch.
    """
    size = batches.emptied_every
    starts = sorted(range(0, len(longest), size), key=lambda start: -max(longest[start : start + size]))
    above = int((1 - frac) * len(longest)) // size
    number = _WINDOWS if size > 1 else _WINDOWS_OF_ONE
    begin = max(0, above - number // 2)
    windows = [
        Window(_ends(longest[max(start - size, 0) : start]), longest[start : start + min(size, _STEPS)])
        for start in starts[begin : begin + number]
    ]
    return windows, min(above - begin, len(windows) - 1)


def _ends(before: Sequence[int]) -> Sequence[int]:
    return before if len(before) < 2 else (max(before), before[-1])
