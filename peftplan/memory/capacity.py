"""In how little memory a run completes: its allocations through torch's allocator, with and without a limit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from peftplan.memory.allocator import OutOfCapacity
from peftplan.memory.fill import fill
from peftplan.memory.unrolled import Section


class AllocatorRun:
    """A run's allocations and frees; each figure is worked out when it is asked for."""

    peak_allocated_bytes: int
    beside_bytes = 0  # what is reserved beside what the sections need
    # The least capacity is searched for down to this part of the allocated peak, in at most so many runs.
    searched_down_to = 1 / 64
    most_runs = 64

    @property
    def sections(self) -> Sequence[Section]:
        """The run, section by section."""
        raise NotImplementedError

    @cached_property
    def reserved_bytes(self) -> int:
        """Peak of reserved bytes by the end of the second step."""
        return max(fill(self.sections) + self.beside_bytes, self.peak_allocated_bytes)

    @cached_property
    def least_capacity_bytes(self) -> int:
        """The least memory in which the run completes, cached segments being given back.

        Found by bisection, from what is allocated to what is reserved without a limit, on the side where the run
        completes.
        """
        low, high = self.peak_allocated_bytes, self.reserved_bytes
        for _ in range(self.most_runs):
            if high - low <= self.peak_allocated_bytes * self.searched_down_to:
                break
            middle = (low + high) // 2
            if self.completes(middle):
                high = middle
            else:
                low = middle
        return high

    def spare_bytes(self, capacity_bytes: int) -> int:
        """What a device of so many bytes for the allocator has beyond the least; below 0, what it lacks."""
        return capacity_bytes - self.least_capacity_bytes

    def completes(self, capacity_bytes: int) -> bool:
        """Whether the run ends on a device that has this many bytes for the allocator."""
        if capacity_bytes >= self.reserved_bytes:
            return True  # nothing is ever given back
        try:
            fill(self.sections, capacity_bytes - self.beside_bytes)
        except OutOfCapacity:
            return False
        return True
