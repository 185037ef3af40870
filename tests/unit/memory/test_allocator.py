"""The model of torch's caching allocator."""

from __future__ import annotations

import pytest

from peftplan.memory.allocator import CachingAllocator, OutOfCapacity
from peftplan.units import MIB


def test_small_requests_share_a_two_mebibyte_segment() -> None:
    """Four requests of 512 bytes reserve one small segment."""
    allocator = CachingAllocator()
    for _ in range(4):
        allocator.allocate(512)
    assert allocator.reserved_bytes == 2 * MIB


def test_middle_requests_share_a_twenty_mebibyte_segment() -> None:
    """Two requests of 9 MiB fit one segment of 20 MiB; a third takes another."""
    allocator = CachingAllocator()
    allocator.allocate(9 * MIB)
    allocator.allocate(9 * MIB)
    assert allocator.reserved_bytes == 20 * MIB
    allocator.allocate(9 * MIB)
    assert allocator.reserved_bytes == 40 * MIB


def test_large_requests_have_a_segment_of_their_own() -> None:
    """A request from 10 MiB on is rounded up to a multiple of 2 MiB."""
    allocator = CachingAllocator()
    allocator.allocate(11 * MIB + 512)
    assert allocator.reserved_bytes == 12 * MIB


def test_a_returned_block_is_used_again_and_merges_with_its_neighbours() -> None:
    """Two neighbours given back serve a request as large as both."""
    allocator = CachingAllocator()
    first, second = allocator.allocate(9 * MIB), allocator.allocate(9 * MIB)
    allocator.release(first, small=False)
    allocator.release(second, small=False)
    allocator.allocate(18 * MIB)
    assert allocator.reserved_bytes == 20 * MIB


def test_a_block_is_not_split_for_a_rest_of_one_mebibyte_or_less() -> None:
    """A free block of 12 MiB that serves 11.5 MiB keeps its rest."""
    allocator = CachingAllocator()
    allocator.release(allocator.allocate(12 * MIB), small=False)
    assert allocator.allocate(11 * MIB + MIB // 2).size == 12 * MIB


def test_cached_segments_are_given_back_before_a_request_fails() -> None:
    """30 MiB hold 16 after 20 once the 20 are free; without that they do not hold both."""
    allocator = CachingAllocator(30 * MIB)
    held = allocator.allocate(20 * MIB)
    with pytest.raises(OutOfCapacity):
        CachingAllocator(10 * MIB).allocate(20 * MIB)
    with pytest.raises(OutOfCapacity):
        allocator.allocate(28 * MIB)
    allocator.release(held, small=False)
    allocator.allocate(28 * MIB)
    assert allocator.reserved_bytes == 28 * MIB
    assert allocator.peak_reserved_bytes == 28 * MIB
