"""Padding, grouping and packing of examples of many lengths: against counting them out."""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftplan.cost.lengths import packed, padded
from peftplan.specs.lengths import Lengths

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=60)


def as_lengths(sizes: list[int]) -> Lengths:
    return Lengths(tuple(sorted(Counter(sizes).items())), "counted")


@given(st.lists(st.integers(1, 30), min_size=4, max_size=9), st.integers(1, 4))
def test_the_mean_longest_is_that_of_all_batches(sizes: list[int], batch: int) -> None:
    """Every batch that could be drawn, each as likely as any other."""
    longest = [max(chosen) for chosen in combinations(sizes, batch)]
    assert padded(as_lengths(sizes), 100, batch).mean_length == pytest.approx(sum(longest) / len(longest))


def test_a_large_batch_is_counted_by_logarithms_as_by_products() -> None:
    """Beyond 64 examples the same figure comes from logarithms of factorials."""
    drawn = random.Random(1)  # noqa: S311
    sizes = [drawn.randint(1, 500) for _ in range(5000)]
    sampled = [max(drawn.sample(sizes, 100)) for _ in range(4000)]
    assert padded(as_lengths(sizes), 1000, 100).mean_length == pytest.approx(sum(sampled) / 4000, rel=0.003)


@given(LENGTHS, st.integers(1, 8), st.integers(2, 50))
def test_nothing_is_longer_than_the_sequence_length(sizes: list[int], batch: int, seq_len: int) -> None:
    """What lies beyond it is lost, and told; padding is a share of what is computed."""
    found = padded(as_lengths(sizes), seq_len, batch)
    assert found.mean_length <= seq_len
    assert found.num_tokens + found.truncated_tokens == sum(sizes)
    assert found.num_truncated == sum(size > seq_len for size in sizes)
    assert 0 <= found.waste_frac < 1


def test_one_example_a_batch_has_no_padding() -> None:
    """A batch of one is as long as it is."""
    found = padded(as_lengths([3, 9, 27]), 100, 1)
    assert found.mean_length == pytest.approx(13.0)
    assert found.waste_frac == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("batch", "accum"), [(8, 1), (4, 4), (16, 2)])
def test_grouping_by_length_comes_to_what_sorting_does(batch: int, accum: int) -> None:
    """Groups of 50 steps, shuffled and sorted within: the mean longest of a micro-batch within 2 %."""
    drawn = random.Random(2)  # noqa: S311
    sizes = [max(1, int(drawn.lognormvariate(5, 0.8))) for _ in range(40_000)]
    size = 50 * batch * accum
    longest = []
    for start in range(0, len(sizes) - size + 1, size):
        group = sorted(sizes[start : start + size])
        longest += [group[end - 1] for end in range(batch, size + 1, batch)]
    found = padded(as_lengths(sizes), 10**6, batch, accum)
    assert found.mean_length == pytest.approx(sum(longest) / len(longest), rel=0.02)
    assert found.waste_frac < padded(as_lengths(sizes), 10**6, batch).waste_frac


def laid_one_by_one(sizes: list[int], seq_len: int) -> int:
    """Best-fit decreasing, an example at a time."""
    rooms: list[int] = []
    opened = 0
    for size in sorted((min(size, seq_len) for size in sizes), reverse=True):
        place = bisect_left(rooms, size)
        opened += place == len(rooms)
        room = (rooms.pop(place) if place < len(rooms) else seq_len) - size
        if room:
            insort(rooms, room)
    return opened


@given(st.lists(st.integers(1, 60), min_size=1, max_size=150), st.integers(5, 64))
def test_packing_lays_examples_as_one_by_one(sizes: list[int], seq_len: int) -> None:
    """Laying examples alike at once fills exactly as many sequences."""
    assert packed(as_lengths(sizes), seq_len).num_sequences == laid_one_by_one(sizes, seq_len)


@given(LENGTHS, st.integers(5, 64))
def test_packed_sequences_hold_all_tokens(sizes: list[int], seq_len: int) -> None:
    """There is room for every token that is kept, and no sequence too many by half."""
    found = packed(as_lengths(sizes), seq_len)
    assert found.num_sequences * seq_len >= found.num_tokens
    assert found.num_sequences <= 2 * -(-found.num_tokens // seq_len)
