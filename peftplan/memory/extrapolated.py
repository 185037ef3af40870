"""What torch's allocator reserves, extrapolated, for whoever asks of thousands of runs.

`reserved` replays every block. Here two steps of the played tape run through a model of the allocator: weights,
optimizer states and the blocks that were played, one by one. Blocks beyond those played add what they add to the
allocated peak: an extrapolated figure, since fragmentation is not linear in depth.
"""

from __future__ import annotations

from collections.abc import Iterable

from peftplan.memory.account import Account
from peftplan.memory.allocator import (
    LARGE_SEGMENT,
    OWN_SEGMENT_FROM,
    OWN_SEGMENT_MULTIPLE,
    SMALL_REQUEST,
    SMALL_SEGMENT,
)
from peftplan.memory.capacity import AllocatorRun
from peftplan.memory.overheads import NUM_WORKSPACES, all_workspaces_bytes, cublas_workspace_bytes
from peftplan.memory.trained import trained_tensors
from peftplan.memory.unrolled import Section
from peftplan.memory.update import Event
from peftplan.optimizers.chosen import chosen
from peftplan.specs.formats import allocated_bytes
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.units import round_up

# Tensors alike, one for each block, are replayed up to this many; the rest fill segments of their own.
REPLAYED_COPIES = 4


class StandingEvents:
    """What a model, a method and an optimizer hold whatever the batch: the same for every step of a kind."""

    def __init__(self, model: ModelSpec, step: StepSpec) -> None:
        optimizer = chosen(step)
        workspace = cublas_workspace_bytes(step.compute_capability)
        weights = [(allocated_bytes(size), n) for _, p, n in model.parameters() for _, size in p.storages()]
        weights.append((workspace, NUM_WORKSPACES))
        trained = trained_tensors(model, step)
        states = [(allocated_bytes(size), row.count) for row in trained for _, size in optimizer.states(row.weight)]
        if step.master_weights:
            states += [(allocated_bytes(4 * row.parameter.numel), row.count) for row in trained]
        temporaries = [
            (allocated_bytes(row.weight.num_bytes), row.count)
            for row in trained
            for _ in optimizer.rule(row.weight).copies
            if not optimizer.in_backward
        ]
        self.temporary_bytes = sum(size * min(n, REPLAYED_COPIES) for size, n in temporaries)
        self.small_bytes = _small_bytes(weights) + _small_bytes(states)
        self.small_temporary_bytes = _small_bytes(temporaries)
        self.unreplayed_bytes = _unreplayed_segments(weights + states)
        # keys below zero: those of the step's own tensors are not
        self.weights = Section(_held(weights, -1))
        self.states = Section(_held(states, -1 - len(self.weights.events)))
        taken = _held(temporaries, -1 - len(self.weights.events) - len(self.states.events))
        self.temporaries = Section(taken + [(key, -size) for key, size in taken])


class Extrapolated(AllocatorRun):
    """Two steps of a played tape, ready to be run through the allocator with or without a capacity."""

    searched_down_to = 1 / 20
    most_runs = 1

    def __init__(self, standing: StandingEvents, step: StepSpec, account: Account) -> None:
        self.peak_allocated_bytes = account.peak_allocated_bytes
        large, small_peak = _large_and_small(account.timeline.changes())
        left: dict[int, int] = {}
        for key, size in large:
            if size > 0:
                left[key] = size
            else:
                del left[key]
        micro_step = Section(large)
        freed = Section([(key, -size) for key, size in left.items()])
        temporaries = standing.temporaries
        first = [standing.weights, micro_step, standing.states, temporaries, freed]
        self._sections = [*first, micro_step, temporaries, freed]
        unplayed = account.peak_allocated_bytes - _replayed_peak(standing, step, account)
        small = standing.small_bytes + max(small_peak, standing.small_temporary_bytes)
        # bytes that the replay does not see: the small pool, which hardly fragments, segments of further
        # blocks' state, and what those blocks save
        self.beside_bytes = round_up(small, SMALL_SEGMENT) + max(unplayed, 0) + standing.unreplayed_bytes

    def spare_bytes(self, capacity_bytes: int) -> int:
        """As every run's; where all that is reserved has room, beyond that, so that nothing is searched for."""
        if capacity_bytes >= self.reserved_bytes:
            return capacity_bytes - self.reserved_bytes
        return super().spare_bytes(capacity_bytes)

    @property
    def sections(self) -> list[Section]:
        """The run, section by section."""
        return self._sections


def _replayed_peak(standing: StandingEvents, step: StepSpec, account: Account) -> int:
    """The allocated peak of what is replayed: all state, but only the blocks that were played."""
    segments = account.timeline.player.segments
    played = max(segment.peak_bytes for segment in segments)
    ended = segments[-1].start_bytes + standing.temporary_bytes
    return account.resident.allocated + all_workspaces_bytes(step.compute_capability) + max(played, ended)


def _large_and_small(changes: Iterable[tuple[int | None, int]]) -> tuple[list[Event], int]:
    """The large requests' events in order, without the ends of gradients, and the small ones' peak."""
    large: list[Event] = []
    level = peak = 0
    for key, size in changes:
        if size > SMALL_REQUEST or size < -SMALL_REQUEST:
            if key is not None:
                large.append((key, size))
        else:
            level += size
            if level > peak:
                peak = level
    return large, peak


def _held(sizes: Iterable[tuple[int, int]], key: int) -> list[Event]:
    """Births of large tensors, each size up to `REPLAYED_COPIES` times; keys fall from `key`."""
    held = [size for size, count in sizes if size > SMALL_REQUEST for _ in range(min(count, REPLAYED_COPIES))]
    return [(key - number, size) for number, size in enumerate(held)]


def _small_bytes(sizes: Iterable[tuple[int, int]]) -> int:
    """Bytes of all tensors that the small pool holds."""
    return sum(size * count for size, count in sizes if size <= SMALL_REQUEST)


def _unreplayed_segments(sizes: Iterable[tuple[int, int]]) -> int:
    """Segments of the copies that are left out, packed with their like."""
    reserved = 0
    for size, count in sizes:
        rest = count - REPLAYED_COPIES
        if rest <= 0 or size <= SMALL_REQUEST:
            continue
        if size < OWN_SEGMENT_FROM:
            reserved += -(-rest // (LARGE_SEGMENT // size)) * LARGE_SEGMENT
        else:
            reserved += round_up(size, OWN_SEGMENT_MULTIPLE) * rest
    return reserved
