"""A recording run through the allocator: what is allocated and reserved, when it is most, and what it needs.

Three measures of the same events, never mixed: requested bytes; allocated bytes, each storage rounded up to
512 (what peftplan calls allocated); and allocated bytes as torch counts them, whole blocks with the rests
that the allocator did not split off. Events are counted: "at event n" means after the first n of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from peftplan.measure.trace.recording import BACKWARD, FORWARD, LOAD, LOSS, STEP, Mark, Recording
from peftplan.memory.allocator import SMALL_REQUEST, SMALL_SEGMENT, Block, CachingAllocator, OutOfCapacity
from peftplan.memory.expandable import ExpandableAllocator
from peftplan.specs.formats import allocated_bytes
from peftplan.units import round_up

PHASES = (FORWARD, LOSS, BACKWARD, STEP)
FORWARD_END = "forward end"


@dataclass(frozen=True, slots=True)
class Peak:
    """The most bytes there ever were, and the first event after which they were there."""

    num_bytes: int
    event: int


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of one step: it runs from the event of its mark to that of the next phase, both included."""

    name: str
    step: int
    begin: int
    end: int
    peak: Peak  # allocated bytes
    micro_batch: int | None = None  # from 0, where a step has several

    @property
    def title(self) -> str:
        """As people say it, counted from 1: `step 2, micro-batch 1, backward`."""
        if self.name == LOAD:
            return "loading"
        micro_batch = "" if self.micro_batch is None else f"micro-batch {self.micro_batch + 1}, "
        return f"step {self.step + 1}, {micro_batch}{self.name.replace('_', ' ')}"


@dataclass(frozen=True, slots=True)
class Fill:
    """What one kind of allocator made of the events."""

    allocated: Peak  # as torch counts it, with rests that were not split off
    reserved: Peak
    num_retries: int  # requests for which cached memory was given back first


@dataclass(frozen=True, slots=True)
class Replay:
    """A recording's figures. `levels[n]` is what is allocated after n events."""

    levels: tuple[int, ...]
    requested: Peak
    allocated: Peak
    segments: Fill  # default settings
    expandable: Fill  # expandable_segments:True
    phases: tuple[Phase, ...]

    def phase(self, name: str, step: int) -> Phase:
        """The phase of this name in a step."""
        for phase in self.phases:
            if (phase.name, phase.step) == (name, step):
                return phase
        raise KeyError((name, step))


def replay(recording: Recording) -> Replay:
    """Run a recording through both kinds of allocator, on a device without limit."""
    rounded = [allocated_bytes(size) for size in recording.sizes]
    levels = tuple(_levels(recording.events, rounded))
    return Replay(
        levels=levels,
        requested=_highest(_levels(recording.events, recording.sizes)),
        allocated=_highest(levels),
        segments=_fill(recording.events, rounded, CachingAllocator()),
        expandable=_fill(recording.events, rounded, ExpandableAllocator()),
        phases=phases_of(recording, levels),
    )


def phases_of(recording: Recording, levels: Sequence[int] | None = None) -> tuple[Phase, ...]:
    """Loading, then every phase of every step; marks that begin no phase are moments inside one."""
    if levels is None:
        levels = _levels(recording.events, [allocated_bytes(size) for size in recording.sizes])
    begins = [Mark(LOAD, 0, 0), *(mark for mark in recording.marks if mark.name in PHASES)]
    ends = [mark.event for mark in begins[1:]] + [len(recording.events)]
    forwards = Counter(mark.step for mark in begins if mark.name == FORWARD)
    seen: Counter[int] = Counter()
    phases = []
    for mark, end in zip(begins, ends):
        seen[mark.step] += mark.name == FORWARD
        several = forwards[mark.step] > 1 and mark.name in (FORWARD, LOSS, BACKWARD)
        phases.append(
            Phase(
                name=mark.name,
                step=mark.step,
                begin=mark.event,
                end=end,
                peak=_highest(levels, mark.event, end),
                micro_batch=seen[mark.step] - 1 if several else None,
            )
        )
    return tuple(phases)


def completes(recording: Recording, capacity_bytes: int, expandable: bool = False) -> bool:
    """Whether the run ends on a device that has this many bytes for the allocator."""
    rounded = [allocated_bytes(size) for size in recording.sizes]
    return _completes(recording.events, rounded, capacity_bytes, expandable)


def least_capacity_bytes(recording: Recording, replayed: Replay, expandable: bool = False) -> int:
    """The least memory for the allocator in which the run completes, to a segment's 2 MiB.

    Found by bisection, from what is allocated to what is reserved without a limit. Where a smaller device
    would happen to pack better than a larger one, this is one of several such borders.
    """
    rounded = [allocated_bytes(size) for size in recording.sizes]
    high = (replayed.expandable if expandable else replayed.segments).reserved.num_bytes
    low = round_up(replayed.allocated.num_bytes, SMALL_SEGMENT) - SMALL_SEGMENT
    while high - low > SMALL_SEGMENT:
        middle = (low + high) // 2 // SMALL_SEGMENT * SMALL_SEGMENT
        if _completes(recording.events, rounded, middle, expandable):
            high = middle
        else:
            low = middle
    return high


def _levels(events: Sequence[int], sizes: Sequence[int]) -> Sequence[int]:
    changes = (sizes[code - 1] if code > 0 else -sizes[-code - 1] for code in events)
    return list(accumulate(changes, initial=0))


def _highest(levels: Sequence[int], begin: int = 0, end: int | None = None) -> Peak:
    """The highest of the levels from one event to another, both included; the first of equals."""
    part = levels[begin : None if end is None else end + 1]
    highest = max(part)
    return Peak(highest, begin + part.index(highest))


def _fill(events: Sequence[int], sizes: Sequence[int], allocator: CachingAllocator) -> Fill:
    """Run events, sizes already rounded, through an allocator. The hot loop: nothing is looked up twice."""
    allocate, release = allocator.allocate, allocator.release
    live: dict[int, Block] = {}
    held = most = most_at = reserved = reserved_at = 0
    for event, code in enumerate(events, 1):
        if code > 0:
            live[code] = block = allocate(sizes[code - 1])
            held += block.size
            if held > most:
                most, most_at = held, event
            if allocator.peak_reserved_bytes > reserved:
                reserved, reserved_at = allocator.peak_reserved_bytes, event
        else:
            block = live.pop(-code)
            held -= block.size
            release(block, sizes[-code - 1] <= SMALL_REQUEST)
    return Fill(Peak(most, most_at), Peak(reserved, reserved_at), allocator.num_retries)


def _completes(events: Sequence[int], sizes: Sequence[int], capacity_bytes: int, expandable: bool) -> bool:
    allocator = (ExpandableAllocator if expandable else CachingAllocator)(capacity_bytes)
    try:
        _fill(events, sizes, allocator)
    except OutOfCapacity:
        return False
    return True
