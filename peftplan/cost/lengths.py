"""What batches make of examples of many lengths: padding to the longest, truncation, packing several in one.

Legend: n examples of lengths l, F(x) of them at most x; b = examples in a batch; s = sequence length.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, lgamma

from peftplan.specs.lengths import Lengths

GROUP_STEPS = 50  # Trainer sorts by length within groups of so many steps; source: trainer-length-groups
_EXACT_BATCH = 64  # up to here a product; above it, logarithms of factorials


@dataclass(frozen=True, slots=True)
class Batching:
    """One pass over a training set: what is kept of it and what a batch computes beside it.

    `num_sequences` rows of `mean_length` tokens each are computed; `num_tokens` of them are real.
    `truncated_tokens` of `num_truncated` examples lie beyond the sequence length and are lost.
    """

    num_examples: int
    num_sequences: int
    num_tokens: int
    mean_length: float
    num_truncated: int
    truncated_tokens: int

    @property
    def waste_frac(self) -> float:
        """The share of computed tokens that are padding."""
        computed = self.num_sequences * self.mean_length
        return max(0.0, 1 - self.num_tokens / computed) if computed else 0.0


@lru_cache(maxsize=64)
def padded(lengths: Lengths, seq_len: int, batch: int, grouped_batches: int = 0) -> Batching:
    """Batches of `batch` examples drawn at random, each padded to its longest, none above `seq_len`.

    The mean longest of a random batch is exact: E[max] = sum over x of P(max > x), draws without replacement.
    With `grouped_batches`, the micro-batches of a step, examples are sorted within groups of 50 steps: the longest
    of the k-th of m batches is the order statistic k b of their group, taken as the quantile k b / (m b + 1) of all
    lengths; of the last batch it is the longest of the group, exact again.

    Source: trainer-length-groups.
    """
    counts = _truncated(lengths, seq_len)
    num = sum(count for _, count in counts)
    inside = min(batch, num)
    mean = _grouped_longest(counts, inside, grouped_batches) if grouped_batches else _mean_longest(counts, inside)
    return _batching(lengths, seq_len, counts, num, mean)


@lru_cache(maxsize=64)
def packed(lengths: Lengths, seq_len: int) -> Batching:
    """Examples laid into sequences of `seq_len` tokens, each into the fullest it fits, the longest first.

    Best-fit decreasing, as TRL packs; what is longer is cut. Examples alike are laid at once.

    Source: trl-packing.
    """
    counts = _truncated(lengths, seq_len)
    return _batching(lengths, seq_len, counts, _best_fit(counts, seq_len), float(seq_len))


def _truncated(lengths: Lengths, seq_len: int) -> list[tuple[int, int]]:
    found: dict[int, int] = {}
    for length, count in lengths.counts:
        kept = min(length, seq_len)
        found[kept] = found.get(kept, 0) + count
    return sorted(found.items())


def _batching(
    lengths: Lengths, seq_len: int, counts: Sequence[tuple[int, int]], sequences: int, mean_length: float
) -> Batching:
    num_tokens = sum(length * count for length, count in counts)
    return Batching(
        num_examples=lengths.num_examples,
        num_sequences=sequences,
        num_tokens=num_tokens,
        mean_length=mean_length,
        num_truncated=sum(count for length, count in lengths.counts if length > seq_len),
        truncated_tokens=lengths.num_tokens - num_tokens,
    )


def _mean_longest(counts: Sequence[tuple[int, int]], batch: int) -> float:
    """Mean of the longest of `batch` examples drawn without replacement [tokens]."""
    num = sum(count for _, count in counts)
    mean, below, before = 0.0, 0, 0.0
    for length, count in counts:
        below += count
        none_longer = _all_within(below, num, batch)
        mean += length * (none_longer - before)
        before = none_longer
    return mean


def _all_within(below: int, num: int, batch: int) -> float:
    """P(all of a batch are among `below` of `num`) = C(below, batch) / C(num, batch)."""
    if below >= num:
        return 1.0
    if below < batch:
        return 0.0
    if batch <= _EXACT_BATCH:
        share = 1.0
        for drawn in range(batch):
            share *= (below - drawn) / (num - drawn)
        return share
    log = lgamma(below + 1) - lgamma(below - batch + 1) - lgamma(num + 1) + lgamma(num - batch + 1)
    return min(1.0, exp(log))


def _grouped_longest(counts: Sequence[tuple[int, int]], batch: int, step_batches: int) -> float:
    """Mean of the longest of a batch where groups of batches are sorted by length [tokens]."""
    num = sum(count for _, count in counts)
    batches = max(1, min(num // (4 * batch * step_batches), GROUP_STEPS)) * step_batches
    ends, total = [], 0
    for _, count in counts:
        total += count
        ends.append(total)
    size = batches * batch
    places = [bisect_left(ends, k * batch / (size + 1) * num) for k in range(1, batches)]
    longest = _mean_longest(counts, min(size, num))  # the last one's, which is the longest of all
    return (sum(counts[min(place, len(counts) - 1)][0] for place in places) + longest) / batches


def _best_fit(counts: Sequence[tuple[int, int]], seq_len: int) -> int:
    """Sequences that best-fit decreasing fills."""
    rooms: dict[int, int] = {}  # sequences by the room that is left in them
    sizes: list[int] = []  # the rooms, rising
    opened = 0

    def keep(room: int, number: int) -> None:
        if room and number:
            if room not in rooms:
                rooms[room] = 0
                insort(sizes, room)
            rooms[room] += number

    for length, count in reversed(counts):
        left = count
        while left:
            place = bisect_left(sizes, length)
            if place == len(sizes):
                each = seq_len // length
                whole, rest = divmod(left, each)
                opened += whole + (1 if rest else 0)
                keep(seq_len - each * length, whole)
                keep(seq_len - rest * length, 1 if rest else 0)
                break
            room = sizes[place]
            each = room // length  # the fullest one stays the fullest until nothing more fits
            number = min(rooms[room], left // each)
            if number:
                used, taken = each * length, number * each
            else:
                number, used, taken = 1, left * length, left
            rooms[room] -= number
            if not rooms[room]:
                del rooms[room]
                sizes.pop(place)
            keep(room - used, number)
            left -= taken
    return opened
