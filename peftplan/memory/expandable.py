"""The caching allocator under `expandable_segments:True`: one segment a pool that grows by pages.

A pool has an address range of its own. Memory is mapped into it by pages of 2 MiB (small requests) or 20 MiB
(large ones), at the lowest address where free and unmapped space together hold the request, so a free block
at the end of the mapped part is extended rather than left behind. A block in use is always split to size.
Before a request fails, every page that lies wholly inside a free block is unmapped.

The address range is taken as endless; torch takes 9/8 of the device's memory and begins another one when
that is used up.

Source: torch 2.13 c10/cuda/CUDACachingAllocator.cpp.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import pairwise

from peftplan.memory.allocator import (
    ADDRESS_MASK,
    KEY_SHIFT,
    LARGE_SEGMENT,
    MIN_BLOCK,
    SMALL_SEGMENT,
    Block,
    CachingAllocator,
    Pool,
    Segment,
    SegmentEvent,
)

ADDRESS_RANGE = 1 << 46  # bytes of virtual addresses a pool


class Unmapped(Block):
    """Addresses without memory behind them, from one page's begin to another's end."""

    __slots__ = ()
    mapped = False


class ExpandablePool(Pool):
    """The free and the unmapped blocks of one pool's address range."""

    def __init__(self, page: int, begin: int) -> None:
        super().__init__(MIN_BLOCK - 1)
        self.page, self.begin = page, begin
        self.unmapped: list[Block] = [Unmapped(begin, ADDRESS_RANGE, None, None)]  # lowest address first
        self.head: Block = self.unmapped[0]

    def smallest(self, size: int) -> Block | None:
        """Take the free block of at least `size` bytes that is smallest, counting what it can grow to."""
        keys, blocks = self.keys, self.blocks
        i = bisect_left(keys, size << KEY_SHIFT)
        if i == len(keys):
            return None
        block = blocks[keys[i] & ADDRESS_MASK]
        while _growing_size(block) > block.size and i + 1 < len(keys):
            larger = blocks[keys[i + 1] & ADDRESS_MASK]
            if _growing_size(larger) >= _growing_size(block):
                break
            i, block = i + 1, larger
        del keys[i]
        del blocks[block.address]
        block.free = False
        return block

    def room(self, size: int) -> Block:
        """The first of the free and unmapped blocks in a row that together hold `size` bytes, lowest address."""
        for gap in self.unmapped:
            first = gap.before if gap.before is not None and gap.before.free else gap
            held, block = 0, first
            while held < size and (block.free or not block.mapped):
                held += block.size
                if block.after is None:
                    break
                block = block.after
            if held >= size:
                return first
        raise AssertionError("an address range has no end")

    def replace(self, old: Block, new: list[Block]) -> None:
        """Put blocks, lowest address first, where one was."""
        for left, right in pairwise([old.before, *new, old.after]):
            if left is not None:
                left.after = right
            if right is not None:
                right.before = left
        if self.head is old:
            self.head = new[0]

    def join(self, block: Block) -> Block:
        """Merge a block outside the pool with its neighbours: a mapped one with free, an unmapped with unmapped."""
        for other in (block.before, block.after):
            if other is None or other.mapped != block.mapped or (other.mapped and not other.free):
                continue
            if other.mapped:
                self.take(other)
            else:
                self.unmapped.remove(other)
            low, high = (other, block) if other is block.before else (block, other)
            low.size += high.size
            low.after = high.after
            if high.after is not None:
                high.after.before = low
            block = low
        return block


def _growing_size(block: Block) -> int:
    """Bytes that a free block has, or would have once the unmapped space behind it is mapped."""
    after = block.after
    return block.size if after is None or after.mapped else block.size + after.size


class ExpandableAllocator(CachingAllocator):
    """Reserved bytes as requests come and go, where the segments expand."""

    small: ExpandablePool
    large: ExpandablePool

    def __init__(self, capacity_bytes: int | None = None) -> None:
        super().__init__(capacity_bytes)
        self.small = ExpandablePool(SMALL_SEGMENT, 0)
        self.large = ExpandablePool(LARGE_SEGMENT, ADDRESS_RANGE)

    def give_back(self) -> None:
        """Unmap every page that is free as a whole: the large pool's first."""
        for pool in (self.large, self.small):
            for block in pool.in_order():
                self._unmap(pool, block)

    def segments(self) -> Iterator[Segment]:
        """Mapped ranges, lowest address first: torch's snapshot reports each as a segment."""
        for pool in (self.small, self.large):
            blocks: list[Block] = []
            block: Block | None = pool.head
            while block is not None:
                if block.mapped:
                    blocks.append(block)
                elif blocks:
                    yield Segment(pool is self.large, tuple(blocks))
                    blocks = []
                block = block.after

    def inactive_split_bytes(self) -> int:
        """Torch leaves expandable segments out of this statistic."""
        return 0

    def _extend(self, pool: Pool, size: int) -> Block | None:
        """Map what is missing at the lowest address that has room; None where the device has no more."""
        assert isinstance(pool, ExpandablePool)
        block: Block | None = pool.room(size)
        assert block is not None
        if not block.mapped:
            block = self._map(pool, block, min(size, block.size))
        while block is not None and block.size < size:
            gap = block.after
            assert gap is not None
            block = self._map(pool, gap, min(size - block.size, gap.size))
        if block is not None:
            pool.take(block)
        return block

    def _map(self, pool: ExpandablePool, gap: Block, size: int) -> Block | None:
        """Map the pages that hold the first `size` bytes of a gap; the free block that they become part of."""
        mapped = -(-size // pool.page) * pool.page
        if not self._reserve("segment_map", gap.address, mapped):
            return None
        pool.unmapped.remove(gap)
        block = Block(gap.address, mapped, None, None)
        parts = [block]
        if mapped < gap.size:
            parts.append(Unmapped(gap.address + mapped, gap.size - mapped, None, None))
            insort(pool.unmapped, parts[1], key=_address)
        pool.replace(gap, parts)
        block = pool.join(block)
        pool.put(block)
        return block

    def _unmap(self, pool: ExpandablePool, block: Block) -> None:
        """Unmap the whole pages of a free block; its ends stay mapped and free."""
        page = pool.page
        begin = pool.begin + -(-(block.address - pool.begin) // page) * page
        end = pool.begin + (block.address + block.size - pool.begin) // page * page
        if begin >= end:
            return
        pool.take(block)
        gap = Unmapped(begin, end - begin, None, None)
        head = Block(block.address, begin - block.address, None, None)
        tail = Block(end, block.address + block.size - end, None, None)
        pool.replace(block, [part for part in (head, gap, tail) if part.size])
        for part in (head, tail):
            if part.size:
                pool.put(part)
        insort(pool.unmapped, pool.join(gap), key=_address)
        self.reserved_bytes -= end - begin
        self.history.append(SegmentEvent("segment_unmap", begin, end - begin))


def _address(block: Block) -> int:
    return block.address
