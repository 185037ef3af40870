"""What torch's allocator reserves: two steps of the played tape run through a model of the allocator.

Weights, optimizer states and the blocks that were played are replayed one by one. Blocks beyond those
played add what they add to the allocated peak: a modelled figure, since fragmentation is not linear in depth.
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
    Block,
    CachingAllocator,
    OutOfCapacity,
)
from peftplan.memory.graph import Record
from peftplan.memory.overheads import NUM_WORKSPACES, all_workspaces_bytes, cublas_workspace_bytes
from peftplan.memory.trained import trained_tensors
from peftplan.optimizers import OPTIMIZERS
from peftplan.specs.formats import allocated_bytes
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.units import round_up

# Tensors alike, one for each block, are replayed up to this many; the rest fill segments of their own.
REPLAYED_COPIES = 4

# (key of a tensor, its size, or 0 where it is freed)
Event = tuple[int, int]


class Replay:
    """Two steps of a played tape, ready to be run through the allocator with or without a capacity."""

    def __init__(self, model: ModelSpec, step: StepSpec, account: Account) -> None:
        optimizer = OPTIMIZERS[step.optimizer]
        self.peak_allocated_bytes = account.peak_allocated_bytes
        workspace = cublas_workspace_bytes(step.compute_capability)
        parameters = [(p, n) for _, p, n in model.parameters()]
        self.weights = [(allocated_bytes(size), n) for p, n in parameters for _, size in p.storages()] + [
            (workspace, NUM_WORKSPACES)
        ]
        trained = trained_tensors(model, step.master_weights, step.trainer)
        self.states = [(allocated_bytes(size), row.count) for row in trained for size in row.states(optimizer)]
        if step.master_weights:
            self.states += [(allocated_bytes(4 * row.parameter.numel), row.count) for row in trained]
        self.temporaries = [
            (allocated_bytes(optimizer.step_all(row.parameter.numel, row.dtype)), row.count) for row in trained
        ]
        self.events, self.gradients, small_peak = _split_events(account.timeline.records)
        replayed = sum(size * min(n, REPLAYED_COPIES) for size, n in self.temporaries)
        unplayed = account.peak_allocated_bytes - _replayed_peak(step, account, replayed)
        small = _small_bytes(self.weights) + _small_bytes(self.states)
        small += max(small_peak, _small_bytes(self.temporaries))
        # bytes that the replay does not see: the small pool, which hardly fragments, segments of further
        # blocks' state, and what those blocks save
        self.beside_bytes = round_up(small, SMALL_SEGMENT) + max(unplayed, 0)
        self.beside_bytes += _unreplayed_segments(self.weights + self.states)

    def run(self, capacity_bytes: int | None = None) -> int:
        """Peak of reserved bytes by the end of the second step; raises OutOfCapacity beyond the capacity."""
        if capacity_bytes is not None:
            capacity_bytes -= self.beside_bytes
        allocator = CachingAllocator(capacity_bytes)
        release = allocator.release
        _hold(allocator, self.weights)
        for number in range(2):
            live = _replay(allocator, self.events)
            if number == 0:
                _hold(allocator, self.states)
            for block in _hold(allocator, self.temporaries):
                release(block, False)
            for key in self.gradients:
                release(live[key], False)
        return max(allocator.peak_reserved_bytes + self.beside_bytes, self.peak_allocated_bytes)

    def least_capacity_bytes(self, reserved_bytes: int) -> int:
        """The least memory in which the step completes, cached segments being given back.

        Found from above, to within 2 % of the way from allocated to reserved.
        """
        low, high = self.peak_allocated_bytes, reserved_bytes
        for _ in range(6):
            middle = (low + high) // 2
            try:
                self.run(middle)
                high = middle
            except OutOfCapacity:
                low = middle
        return high


def _replayed_peak(step: StepSpec, account: Account, temporary_bytes: int) -> int:
    """The allocated peak of what is replayed: all state, but only the blocks that were played."""
    segments = account.timeline.player.segments
    played = max(segment.peak_bytes for segment in segments)
    ended = segments[-1].start_bytes + temporary_bytes
    return account.resident.allocated + all_workspaces_bytes(step.compute_capability) + max(played, ended)


def _split_events(records: Iterable[Record]) -> tuple[list[Event], list[int], int]:
    """The large requests' events in order, those that outlive the backward pass, and the small ones' peak."""
    timed: list[tuple[int, int, int]] = []
    small: list[tuple[int, int]] = []
    lasting = []
    for record in records:
        size, born, died = record.size, record.born, record.died
        if size <= SMALL_REQUEST:
            small.append((born, size))
            if died:
                small.append((died, -size))
            continue
        timed.append((born, born, size))
        if died and record.kind != "gradient":
            timed.append((died, born, 0))
        else:
            lasting.append(born)
    timed.sort()
    small.sort()
    level = peak = 0
    for _, change in small:
        level += change
        if level > peak:
            peak = level
    return [(key, size) for _, key, size in timed], lasting, peak


def _hold(allocator: CachingAllocator, sizes: Iterable[tuple[int, int]]) -> list[Block]:
    """Allocate large tensors, each size up to `REPLAYED_COPIES` times."""
    allocate = allocator.allocate
    return [
        allocate(size) for size, count in sizes if size > SMALL_REQUEST for _ in range(min(count, REPLAYED_COPIES))
    ]


def _small_bytes(sizes: Iterable[tuple[int, int]]) -> int:
    """Bytes of all tensors that the small pool holds."""
    return sum(size * count for size, count in sizes if size <= SMALL_REQUEST)


def _unreplayed_segments(sizes: Iterable[tuple[int, int]]) -> int:
    """Segments of the copies that `_hold` leaves out, packed with their like."""
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


def _replay(allocator: CachingAllocator, events: list[Event]) -> dict[int, Block]:
    """Run a micro-step's events; what is still alive at its end is returned."""
    live: dict[int, Block] = {}
    allocate, release = allocator.allocate, allocator.release
    for key, size in events:
        if size:
            live[key] = allocate(size)
        else:
            release(live.pop(key), False)
    return live
