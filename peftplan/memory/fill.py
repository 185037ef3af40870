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
    """The most that is reserved; raises OutOfCapacity where the device has less than is needed."""
    filling = Filling(capacity_bytes)
    try:
        filling.play(sections)
        return filling.most_bytes
    finally:
        filling.end()


class Filling:
    """The allocator's state between sections: for whoever plays them in parts, and looks in between.

    A block is [address, size, block before it, block behind it, its key if it is free or 0].
    """

    def __init__(self, capacity_bytes: int = _UNLIMITED) -> None:
        self.capacity_bytes = capacity_bytes
        self.reserved_bytes = self.most_bytes = 0
        self._lowest = FIRST_ADDRESS
        self._free: _Blocks = {}  # by key
        self._live: _Blocks = {}
        self._small: list[int] = []  # keys of the free blocks, smallest first
        self._large: list[int] = []

    def give_back(self) -> None:
        """What torch.cuda.empty_cache does: every segment without a live block goes back to the device."""
        self.reserved_bytes -= _give_back(self._large, self._free) + _give_back(self._small, self._free)

    def end(self) -> None:
        """Cut every block one way: neighbours are no cycles then, and no garbage is left to be searched for."""
        for block in chain(self._free.values(), self._live.values()):
            block[2] = None

    def play(self, sections: Iterable[Section]) -> None:
        """Run the sections' events; raises OutOfCapacity where the device has less than is needed."""
        free, live, small, large = self._free, self._live, self._small, self._large
        reserved, most, lowest = self.reserved_bytes, self.most_bytes, self._lowest
        capacity_bytes = self.capacity_bytes
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
        self.reserved_bytes, self.most_bytes, self._lowest = reserved, most, lowest


def _give_back(keys: list[int], free: _Blocks) -> int:
    """Return every segment that is one free block to the device; how many bytes those were."""
    whole = [key for key in keys if free[key][2] is None and free[key][3] is None]
    keys[:] = [key for key in keys if free[key][2] is not None or free[key][3] is not None]
    return sum(free.pop(key)[1] for key in whole)
