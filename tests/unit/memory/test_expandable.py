"""The model of torch's allocator with segments that expand."""

from __future__ import annotations

import random

import pytest

from peftplan.memory.allocator import SMALL_REQUEST, Block, OutOfCapacity
from peftplan.memory.expandable import ExpandableAllocator
from peftplan.units import MIB

PAGE = 20 * MIB


def test_a_pool_grows_by_pages() -> None:
    """A large request maps whole pages of 20 MiB, a small one a page of 2 MiB."""
    allocator = ExpandableAllocator()
    allocator.allocate(21 * MIB)
    assert allocator.reserved_bytes == 2 * PAGE
    allocator.allocate(512)
    assert allocator.reserved_bytes == 2 * PAGE + 2 * MIB


def test_a_free_end_is_extended() -> None:
    """A request larger than the free end of the mapped part maps only what is missing."""
    allocator = ExpandableAllocator()
    allocator.allocate(15 * MIB)
    block = allocator.allocate(25 * MIB)  # 5 MiB are mapped and free
    assert allocator.reserved_bytes == 2 * PAGE
    assert block.address - PAGE // 4 * 3 == next(iter(allocator.segments())).blocks[0].address


def test_blocks_are_split_to_size() -> None:
    """No rest stays in a block: 11.5 MiB out of a free block of 12 MiB leave half a MiB free."""
    allocator = ExpandableAllocator()
    freed, _ = allocator.allocate(12 * MIB), allocator.allocate(PAGE)
    allocator.release(freed, small=False)
    assert allocator.allocate(23 * MIB // 2).size == 23 * MIB // 2


def test_the_block_that_can_grow_is_taken_last() -> None:
    """A larger block between others is preferred to the end of the mapped part, which could grow."""
    allocator = ExpandableAllocator()
    hole, _, _ = allocator.allocate(12 * MIB), allocator.allocate(6 * MIB), allocator.allocate(12 * MIB)
    allocator.release(hole, small=False)  # 12 MiB free; the end has 10 MiB
    assert allocator.allocate(9 * MIB).address == hole.address
    assert allocator.reserved_bytes == 2 * PAGE


def test_free_pages_are_unmapped_before_a_request_fails() -> None:
    """Whole pages inside a free block are given back, and later mapped again at the same addresses."""
    allocator = ExpandableAllocator(6 * PAGE)
    held, freed = allocator.allocate(5 * MIB), allocator.allocate(75 * MIB)
    tail = allocator.allocate(MIB + 512)
    assert allocator.reserved_bytes == 5 * PAGE
    allocator.release(freed, small=False)  # from 5 to 80 MiB: three whole pages
    with pytest.raises(OutOfCapacity):
        allocator.allocate(99 * MIB)
    assert allocator.num_retries == 1
    assert allocator.reserved_bytes == 2 * PAGE
    assert allocator.allocate(60 * MIB).address == held.address + held.size
    assert allocator.reserved_bytes == 5 * PAGE
    assert [event.action for event in allocator.history if event.address == held.address + PAGE][-2:] == [
        "segment_unmap",
        "segment_map",
    ]
    allocator.release(tail, small=False)


def test_a_device_full_of_held_pages_refuses() -> None:
    """What is in use cannot be unmapped: the request fails, and what is held stays as it was."""
    allocator = ExpandableAllocator(2 * PAGE)
    allocator.allocate(30 * MIB)
    with pytest.raises(OutOfCapacity):
        allocator.allocate(11 * MIB)
    assert allocator.reserved_bytes == 2 * PAGE


@pytest.mark.parametrize("seed", range(8))
def test_mapped_ranges_hold_together(seed: int) -> None:
    """Whatever comes and goes: ranges are pages, blocks fill them in order, and their sum is what is reserved."""
    rng = random.Random(seed)  # noqa: S311
    allocator = ExpandableAllocator(300 * MIB)
    live: list[tuple[Block, bool]] = []
    for _ in range(400):
        if live and rng.random() < 0.5:
            allocator.release(*live.pop(rng.randrange(len(live))))
        else:
            size = 512 * rng.choice([1, 7, 2048, 2049, 12_345, 30_000, 81_921])
            try:
                live.append((allocator.allocate(size), size <= SMALL_REQUEST))
            except OutOfCapacity:
                continue
    segments = list(allocator.segments())
    for segment in segments:
        address = segment.blocks[0].address
        for block in segment.blocks:
            assert block.address == address
            address += block.size
        page = PAGE if segment.large else 2 * MIB
        assert (address - segment.blocks[0].address) % page == 0
    assert sum(block.size for segment in segments for block in segment.blocks) == allocator.reserved_bytes
    assert sum(block.size for block, _ in live) <= allocator.reserved_bytes <= 300 * MIB
