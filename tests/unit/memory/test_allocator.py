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


def test_of_equal_free_blocks_the_lowest_address_is_taken() -> None:
    """Free blocks of one size are handed out by address, which falls from segment to segment, in whatever order."""
    allocator = CachingAllocator()
    first, _, second = (allocator.allocate(12 * MIB) for _ in range(3))
    assert second.address < first.address
    allocator.release(second, small=False)
    allocator.release(first, small=False)
    assert allocator.allocate(12 * MIB).address == second.address


def test_segments_and_blocks_fill_what_is_reserved() -> None:
    """Blocks follow one another without a gap in each segment, and all segments add up to what is reserved."""
    allocator = CachingAllocator()
    blocks = [allocator.allocate(size) for size in (512, 3 * MIB, 8 * MIB, 40 * MIB, 1024)]
    allocator.release(blocks[1], small=False)
    total = 0
    for segment in allocator.segments():
        expected = segment.blocks[0].address
        for block in segment.blocks:
            assert block.address == expected
            expected += block.size
            total += block.size
    assert total == allocator.reserved_bytes == 62 * MIB


def test_history_tells_what_was_taken_and_given_back() -> None:
    """A request beyond the capacity gives back the free segment, then takes its own: one retry."""
    allocator = CachingAllocator(30 * MIB)
    allocator.release(allocator.allocate(20 * MIB), small=False)
    allocator.allocate(28 * MIB)
    assert [event.action for event in allocator.history] == ["segment_alloc", "segment_free", "segment_alloc"]
    assert [event.num_bytes for event in allocator.history] == [20 * MIB, 20 * MIB, 28 * MIB]
    assert allocator.num_retries == 1


def test_inactive_bytes_are_those_of_segments_partly_in_use() -> None:
    """What is free beside a block in use cannot be given back; a segment that is wholly free can."""
    allocator = CachingAllocator()
    allocator.allocate(8 * MIB)
    assert allocator.inactive_split_bytes() == 12 * MIB
    allocator.release(allocator.allocate(30 * MIB), small=False)
    assert allocator.inactive_split_bytes() == 12 * MIB
