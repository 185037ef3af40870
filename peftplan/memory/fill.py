"""Every tensor of a run through torch's allocator, in one loop.

The rules are `CachingAllocator`'s, to which tests hold this loop. Here they are written out once more, with
nothing called and nothing looked up twice, because every tensor of every block of a model goes through it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import chain
from typing import Any

from peftplan.memory.allocator import (
    FIRST_ADDRESS,
    KEY_SHIFT,
    MIN_BLOCK,
    SMALL_REQUEST,
    OutOfCapacity,
    segment_bytes,
)
from peftplan.memory.unrolled import Section

_UNLIMITED = 1 << 62
_Blocks = dict[int, list[Any]]


def fill(sections: Iterable[Section], capacity_bytes: int = _UNLIMITED) -> int:
    """The most that is reserved; raises OutOfCapacity where the device has less than is needed.

    A block is [address, size, block before it, block behind it, its key if it is free or 0].
    """
    free: _Blocks = {}  # by key
    live: _Blocks = {}
    try:
        return _filled(sections, capacity_bytes, free, live)
    finally:
        # cut one way, neighbours are no cycles: they go at once, and no garbage is left to be searched for
        for block in chain(free.values(), live.values()):
            block[2] = None


def _filled(sections: Iterable[Section], capacity_bytes: int, free: _Blocks, live: _Blocks) -> int:
    reserved = most = 0
    lowest = FIRST_ADDRESS
    small: list[int] = []  # keys of the free blocks, smallest first
    large: list[int] = []
    for section in sections:
        events, stride = section.events, section.stride
        for copy in section.copies:
            shift = copy * stride
            for name, size in events:
                if size > 0:
                    keys = large if size > SMALL_REQUEST else small
                    place = bisect_left(keys, size << KEY_SHIFT)
                    if place < len(keys):
                        block = free.pop(keys.pop(place))
                    else:
                        new = segment_bytes(size)
                        if reserved + new > capacity_bytes:
                            reserved -= _give_back(large, free) + _give_back(small, free)
                            if reserved + new > capacity_bytes:
                                raise OutOfCapacity
                            place = 0
                        reserved += new
                        if reserved > most:
                            most = reserved
                        lowest -= new
                        block = [lowest, new, None, None, 0]
                    left = block[1] - size
                    if left > SMALL_REQUEST or (left >= MIN_BLOCK and size <= SMALL_REQUEST):
                        address = block[0] + size
                        key = left << KEY_SHIFT | address
                        after = block[3]
                        rest = [address, left, block, after, key]
                        if after is not None:
                            after[2] = rest
                        block[3], block[1] = rest, size
                        insort(keys, key)
                        free[key] = rest
                    block[4] = 0
                    live[name + shift] = block
                    continue
                keys = large if size < -SMALL_REQUEST else small
                block = live.pop(name + shift)
                before, after = block[2], block[3]
                if before is not None and before[4]:
                    key = before[4]
                    del keys[bisect_left(keys, key)], free[key]
                    before[1] += block[1]
                    before[3] = after
                    if after is not None:
                        after[2] = before
                    block = before
                if after is not None and after[4]:
                    key = after[4]
                    del keys[bisect_left(keys, key)], free[key]
                    block[1] += after[1]
                    block[3] = after = after[3]
                    if after is not None:
                        after[2] = block
                block[4] = key = block[1] << KEY_SHIFT | block[0]
                insort(keys, key)
                free[key] = block
    return most


def _give_back(keys: list[int], free: _Blocks) -> int:
    """Return every segment that is one free block to the device; how many bytes those were."""
    whole = [key for key in keys if free[key][2] is None and free[key][3] is None]
    keys[:] = [key for key in keys if free[key][2] is not None or free[key][3] is not None]
    return sum(free.pop(key)[1] for key in whole)
