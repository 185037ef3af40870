"""Batches of a loop that sorts examples by length within buckets, and the steps that hold the most memory.

Legend: a bucket is as many examples as `bucket_batches` batches have, laid longest first; a window is the steps
between two calls of `torch.cuda.empty_cache`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

from peftplan.specs.lengths import Lengths

_WINDOWS = 5  # replayed, around the one that the share of steps falls on
_STEPS = 2  # of a window: what is reserved hardly grows once batches become shorter


@dataclass(frozen=True, slots=True)
class Bucketed:
    """How a loop takes its batches: `num_steps` of them, and the cache given back after every `emptied_every`."""

    lengths: Lengths
    bucket_batches: int
    num_steps: int
    emptied_every: int


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


def steps_at(longest: Sequence[int], batches: Bucketed, frac: float) -> tuple[list[list[int]], int]:
    """The windows around the one that the share `frac` of all steps falls on, and its place among them.

    Each is the length of the step before it, and those of its first steps [tokens]. Windows stand in order of their
    longest batch, the longest first: what is reserved after a step is what its window's longest left in the cache.
    """
    size = batches.emptied_every
    starts = sorted(range(0, len(longest), size), key=lambda start: -max(longest[start : start + size]))
    above = int((1 - frac) * len(longest)) // size
    begin = max(0, above - _WINDOWS // 2)
    windows = [
        [longest[max(start - 1, 0)], *longest[start : start + min(size, _STEPS)]]
        for start in starts[begin : begin + _WINDOWS]
    ]
    return windows, min(above - begin, len(windows) - 1)
