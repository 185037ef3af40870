"""A model of torch's CUDA caching allocator: how much it reserves for a sequence of requests.

One stream, default settings. Requests up to 1 MiB come from 2 MiB segments, up to 10 MiB from 20 MiB
segments, larger ones from a segment of their own rounded to 2 MiB; the smallest free block that is large
enough is taken, split when more than 1 MiB would be left (512 bytes in the small pool), and merged with
its free neighbours when it returns. Freed segments stay reserved.

Source: torch 2.13 c10/cuda/CUDACachingAllocator.cpp.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from peftplan.units import MIB

SMALL_REQUEST = 1 * MIB
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
OWN_SEGMENT_FROM = 10 * MIB
OWN_SEGMENT_MULTIPLE = 2 * MIB
MIN_BLOCK = 512
_ID_BITS = 24


class Block:
    """A piece of a segment, in use or free, between its neighbours."""

    __slots__ = ("after", "before", "free", "number", "size")

    def __init__(self, number: int, size: int, before: Block | None, after: Block | None) -> None:
        self.number, self.size, self.before, self.after = number, size, before, after
        self.free = False


class Pool:
    """The free blocks of one pool, smallest first, and the rule when to split one."""

    def __init__(self, keep_below: int) -> None:
        self.keep_below = keep_below
        self.keys: list[int] = []  # size and block number in one integer, sorted
        self.blocks: dict[int, Block] = {}

    def put(self, block: Block) -> None:
        """Make a block free."""
        block.free = True
        insort(self.keys, block.size << _ID_BITS | block.number)
        self.blocks[block.number] = block

    def take(self, block: Block) -> None:
        """Take a block out of the free ones."""
        block.free = False
        del self.keys[bisect_left(self.keys, block.size << _ID_BITS | block.number)]
        del self.blocks[block.number]

    def smallest(self, size: int) -> Block | None:
        """Take the smallest free block of at least `size` bytes."""
        keys = self.keys
        i = bisect_left(keys, size << _ID_BITS)
        if i == len(keys):
            return None
        block = self.blocks.pop(keys.pop(i) & ((1 << _ID_BITS) - 1))
        block.free = False
        return block


class OutOfCapacity(Exception):
    """A request that fits neither in a cached block nor, cached segments given back, on the device."""


class CachingAllocator:
    """Reserved bytes as requests come and go. Sizes are already rounded to 512 bytes.

    With a `capacity_bytes`, segments that are wholly free are given back before a request fails.
    """

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0
        self.capacity_bytes = capacity_bytes
        self.small = Pool(MIN_BLOCK - 1)
        self.large = Pool(SMALL_REQUEST)
        self.number = 0

    def allocate(self, size: int) -> Block:
        """A block of at least `size` bytes."""
        pool = self.small if size <= SMALL_REQUEST else self.large
        block = pool.smallest(size)
        if block is None:
            block = self._segment(size)
        left = block.size - size
        if left > pool.keep_below:
            self.number = number = self.number + 1
            rest = Block(number, left, block, block.after)
            if block.after is not None:
                block.after.before = rest
            block.after, block.size = rest, size
            pool.put(rest)
        return block

    def _segment(self, size: int) -> Block:
        if size <= SMALL_REQUEST:
            segment = SMALL_SEGMENT
        elif size < OWN_SEGMENT_FROM:
            segment = LARGE_SEGMENT
        else:
            segment = -(-size // OWN_SEGMENT_MULTIPLE) * OWN_SEGMENT_MULTIPLE
        capacity = self.capacity_bytes
        if capacity is not None and self.reserved_bytes + segment > capacity:
            self.give_back()
            if self.reserved_bytes + segment > capacity:
                raise OutOfCapacity
        self.reserved_bytes += segment
        if self.reserved_bytes > self.peak_reserved_bytes:
            self.peak_reserved_bytes = self.reserved_bytes
        self.number += 1
        return Block(self.number, segment, None, None)

    def give_back(self) -> None:
        """Return every segment that is one free block to the device (empty_cache)."""
        for pool in (self.small, self.large):
            for block in list(pool.blocks.values()):
                if block.before is None and block.after is None:
                    pool.take(block)
                    self.reserved_bytes -= block.size

    def release(self, block: Block, small: bool) -> None:
        """Give a block back; it merges with free neighbours."""
        pool = self.small if small else self.large
        before, after = block.before, block.after
        if before is not None and before.free:
            pool.take(before)
            before.size += block.size
            before.after = after
            if after is not None:
                after.before = before
            block = before
        if after is not None and after.free:
            pool.take(after)
            block.size += after.size
            block.after = after.after
            if after.after is not None:
                after.after.before = block
        pool.put(block)
