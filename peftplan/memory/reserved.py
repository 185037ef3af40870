"""What torch's allocator reserves: two steps of the played tape run through a model of the allocator.

Weights, optimizer states and the blocks that were played are replayed one by one. Blocks beyond those
played add what they add to the allocated peak: a modelled figure, since fragmentation is not linear in depth.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter

from peftplan.memory.account import Account
from peftplan.memory.allocator import (
    LARGE_SEGMENT,
    OWN_SEGMENT_FROM,
    OWN_SEGMENT_MULTIPLE,
    SMALL_REQUEST,
    SMALL_SEGMENT,
    Block,
    CachingAllocator,
)
from peftplan.memory.overheads import NUM_WORKSPACES, cublas_workspace_bytes
from peftplan.memory.tape import Record
from peftplan.optimizers import OPTIMIZERS
from peftplan.specs.formats import FP32, allocated_bytes
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.units import round_up

# Tensors alike, one for each block, are replayed up to this many; the rest fill segments of their own.
REPLAYED_COPIES = 4

# (clock, record, whether it is born)
Event = tuple[int, Record, bool]


def reserved_bytes(model: ModelSpec, step: StepSpec, account: Account) -> int:
    """Peak of reserved memory by the end of a second step."""
    allocator = CachingAllocator()
    optimizer, timeline = OPTIMIZERS[step.optimizer], account.timeline
    sizes = [
        (allocated_bytes(size), count)
        for _, parameter, count in model.parameters()
        for _, size in parameter.storages()
    ]
    _hold(allocator, sizes)
    _hold(allocator, [(cublas_workspace_bytes(step.compute_capability), NUM_WORKSPACES)])
    trained = [(p, n) for _, p, n in model.parameters() if p.edge is not None]
    formats = [(p, n, FP32 if step.master_weights else p.dtype) for p, n in trained]
    states = [
        (allocated_bytes(size), n) for p, n, d in formats for size in optimizer.states(p.shape, d)
    ]
    if step.master_weights:
        states += [(allocated_bytes(4 * p.numel), n) for p, n in trained]
    temporaries = [(allocated_bytes(optimizer.step_all(p.numel, d)), n) for p, n, d in formats]
    events = _events(timeline.records)
    for number in range(2):
        gradients = _replay(allocator, events)
        if number == 0:
            _hold(allocator, states)
        for block, small in _hold(allocator, temporaries) + gradients:
            allocator.release(block, small)
    replayed = sum(size * min(count, REPLAYED_COPIES) for size, count in temporaries)
    unplayed = account.peak_allocated_bytes - _replayed_peak(step, account, replayed)
    reserved = allocator.reserved_bytes + _unreplayed_segments(sizes + states) + max(unplayed, 0)
    return max(reserved, account.peak_allocated_bytes)


def _replayed_peak(step: StepSpec, account: Account, temporary_bytes: int) -> int:
    """The allocated peak of what is replayed: all state, but only the blocks that were played."""
    segments = account.timeline.player.segments
    played = max(segment.peak_bytes for segment in segments)
    ended = segments[-1].start_bytes + temporary_bytes
    workspaces = NUM_WORKSPACES * cublas_workspace_bytes(step.compute_capability)
    return account.resident.allocated + workspaces + max(played, ended)


def _events(records: Iterable[Record]) -> list[Event]:
    events: list[Event] = []
    for record in records:
        events.append((record.born, record, True))
        if record.died:
            events.append((record.died, record, False))
    events.sort(key=itemgetter(0))
    return events


def _hold(allocator: CachingAllocator, sizes: Iterable[tuple[int, int]]) -> list[tuple[Block, bool]]:
    """Allocate tensors, each size up to `REPLAYED_COPIES` times."""
    held = []
    for size, count in sizes:
        if size:
            small = size <= SMALL_REQUEST
            for _ in range(min(count, REPLAYED_COPIES)):
                held.append((allocator.allocate(size), small))
    return held


def _unreplayed_segments(sizes: Iterable[tuple[int, int]]) -> int:
    """Segments of the copies that `_hold` leaves out, packed with their like."""
    reserved = small = 0
    for size, count in sizes:
        rest = count - REPLAYED_COPIES
        if rest <= 0:
            continue
        if size <= SMALL_REQUEST:
            small += size * rest
        elif size < OWN_SEGMENT_FROM:
            reserved += -(-rest // (LARGE_SEGMENT // size)) * LARGE_SEGMENT
        else:
            reserved += round_up(size, OWN_SEGMENT_MULTIPLE) * rest
    return reserved + round_up(small, SMALL_SEGMENT)


def _replay(allocator: CachingAllocator, events: list[Event]) -> list[tuple[Block, bool]]:
    """Run a micro-step's events; what is still alive at its end (gradients) is returned."""
    live: dict[int, Block] = {}
    allocate, release = allocator.allocate, allocator.release
    for _, record, born in events:
        if born:
            live[record.born] = allocate(record.size)
        elif record.kind != "gradient":
            release(live.pop(record.born), record.size <= SMALL_REQUEST)
    sizes = {r.born: r.size for _, r, born in events if born and r.born in live}
    return [(block, sizes[key] <= SMALL_REQUEST) for key, block in live.items()]
