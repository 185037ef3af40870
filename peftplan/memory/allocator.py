"""A model of torch's CUDA caching allocator: which block serves a request, and how much it reserves.

One stream, default settings. Requests up to 1 MiB come from 2 MiB segments, up to 10 MiB from 20 MiB
segments, larger ones from a segment of their own rounded to 2 MiB; the smallest free block that is large
enough is taken (of equal ones that at the lowest address), split when more than 1 MiB would be left
(512 bytes in the small pool), and merged with its free neighbours when it returns. Freed segments stay
reserved until a request would fail: then every segment that is wholly free is given back, and the request
is tried once more.

Sizes are multiples of 512 bytes. Addresses are virtual; each new segment lies below those before it, so of
two equal free blocks the younger segment's is taken. That order is the driver's: with rising addresses the
peaks that were measured on a T4 are missed by up to 9 %, with falling ones by less than 0.2 %.

Source: torch 2.13 c10/cuda/CUDACachingAllocator.cpp, fitcheck-reserved.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import NamedTuple

from peftplan.units import MIB

SMALL_REQUEST = 1 * MIB
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
OWN_SEGMENT_FROM = 10 * MIB
OWN_SEGMENT_MULTIPLE = 2 * MIB
MIN_BLOCK = 512
# A key orders free blocks by size, then address, in one integer: sizes leave 9 bits free, addresses take 48.
KEY_SHIFT = 39
ADDRESS_MASK = (1 << 48) - 1
FIRST_ADDRESS = 1 << 46  # segments lie below, each below those before it


class Block:
    """A piece of a segment, in use or free, between its neighbours."""

    __slots__ = ("address", "after", "before", "free", "size")
    mapped = True

    def __init__(self, address: int, size: int, before: Block | None, after: Block | None) -> None:
        self.address, self.size, self.before, self.after = address, size, before, after
        self.free = False


def segment_bytes(size: int) -> int:
    """Bytes of the segment that is made for a request."""
    if size <= SMALL_REQUEST:
        return SMALL_SEGMENT
    if size < OWN_SEGMENT_FROM:
        return LARGE_SEGMENT
    return -(-size // OWN_SEGMENT_MULTIPLE) * OWN_SEGMENT_MULTIPLE


class SegmentEvent(NamedTuple):
    """Memory taken from the device or given back to it. `action` is the word of torch's trace."""

    action: str  # segment_alloc, segment_free; segment_map, segment_unmap where segments expand
    address: int
    num_bytes: int


class Segment(NamedTuple):
    """A contiguous piece of device memory and the blocks that fill it, lowest address first."""

    large: bool
    blocks: tuple[Block, ...]


class Pool:
    """The free blocks of one pool, smallest first, and the rule when to split one."""

    def __init__(self, keep_below: int) -> None:
        self.keep_below = keep_below
        self.keys: list[int] = []  # size and address in one integer, sorted
        self.blocks: dict[int, Block] = {}  # by address

    def put(self, block: Block) -> None:
        """Make a block free."""
        block.free = True
        insort(self.keys, block.size << KEY_SHIFT | block.address)
        self.blocks[block.address] = block

    def take(self, block: Block) -> None:
        """Take a block out of the free ones."""
        block.free = False
        del self.keys[bisect_left(self.keys, block.size << KEY_SHIFT | block.address)]
        del self.blocks[block.address]

    def smallest(self, size: int) -> Block | None:
        """Take the smallest free block of at least `size` bytes."""
        keys = self.keys
        i = bisect_left(keys, size << KEY_SHIFT)
        if i == len(keys):
            return None
        block = self.blocks.pop(keys.pop(i) & ADDRESS_MASK)
        block.free = False
        return block

    def in_order(self) -> list[Block]:
        """The free blocks, smallest first."""
        return [self.blocks[key & ADDRESS_MASK] for key in self.keys]


class OutOfCapacity(Exception):
    """A request that fits neither in a cached block nor, cached segments given back, on the device."""


class CachingAllocator:
    """Reserved bytes as requests come and go. Sizes are already rounded to 512 bytes.

    With a `capacity_bytes`, segments that are wholly free are given back before a request fails. What torch
    counts as allocated is the sum of the sizes of the blocks in use, rests that were not split included.
    """

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0
        self.capacity_bytes = capacity_bytes
        self.num_retries = 0
        self.history: list[SegmentEvent] = []
        self.small = Pool(MIN_BLOCK - 1)
        self.large = Pool(SMALL_REQUEST)
        self._heads: dict[int, tuple[bool, Block]] = {}  # first block of each segment, by address
        self._lowest_address = FIRST_ADDRESS

    def allocate(self, size: int) -> Block:
        """A block of at least `size` bytes."""
        pool = self.small if size <= SMALL_REQUEST else self.large
        block = pool.smallest(size)
        if block is None:
            block = self._more(pool, size)
        left = block.size - size
        if left > pool.keep_below:
            rest = Block(block.address + size, left, block, block.after)
            if block.after is not None:
                block.after.before = rest
            block.after, block.size = rest, size
            pool.put(rest)
        return block

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

    def give_back(self) -> None:
        """Return every segment that is one free block to the device (empty_cache): the large pool's first."""
        for pool in (self.large, self.small):
            for block in pool.in_order():
                if block.before is None and block.after is None:
                    pool.take(block)
                    del self._heads[block.address]
                    self.reserved_bytes -= block.size
                    self.history.append(SegmentEvent("segment_free", block.address, block.size))

    def segments(self) -> Iterator[Segment]:
        """What is reserved now, lowest address first."""
        for large, head in reversed(self._heads.values()):
            yield Segment(large, tuple(_chain(head)))

    def inactive_split_bytes(self) -> int:
        """Free bytes that could not be given back: blocks of segments that are partly in use."""
        free = (block for pool in (self.small, self.large) for block in pool.blocks.values())
        return sum(block.size for block in free if block.before is not None or block.after is not None)

    def _more(self, pool: Pool, size: int) -> Block:
        """A block from the device, after giving back what is free where it would not fit beside it."""
        block = self._extend(pool, size)
        if block is None:
            self.give_back()
            self.num_retries += 1
            block = self._extend(pool, size)
            if block is None:
                raise OutOfCapacity
        return block

    def _extend(self, pool: Pool, size: int) -> Block | None:
        """A new segment as one block in use, or None where the device has no room for it."""
        segment = segment_bytes(size)
        address = self._lowest_address - segment
        if not self._reserve("segment_alloc", address, segment):
            return None
        self._lowest_address = address
        block = Block(address, segment, None, None)
        self._heads[address] = (pool is self.large, block)
        return block

    def _reserve(self, action: str, address: int, num_bytes: int) -> bool:
        """Take bytes from the device, where it has them."""
        reserved = self.reserved_bytes + num_bytes
        if self.capacity_bytes is not None and reserved > self.capacity_bytes:
            return False
        self.reserved_bytes = reserved
        if reserved > self.peak_reserved_bytes:
            self.peak_reserved_bytes = reserved
        self.history.append(SegmentEvent(action, address, num_bytes))
        return True


def _chain(block: Block | None) -> Iterator[Block]:
    """A block and those behind it."""
    while block is not None:
        yield block
        block = block.after
