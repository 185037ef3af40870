"""What is alive at a moment of a recording, and how it came about: largest storages, totals, a tree, a timeline.

Bytes of single storages are what was requested; where a total is named allocated, each storage is rounded
up to 512 bytes, and the difference is a part of its own, so that parts always sum to the whole.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import nlargest

from peftplan.breakdown import Node, branch, leaf
from peftplan.measure.trace.recording import (
    ACTIVATION,
    ADAPTER,
    BUCKET,
    BUFFER,
    GRADIENT,
    INPUT,
    KERNEL,
    MASTER,
    OPTIMIZER_STATE,
    PARAMETER,
    RECOMPUTED,
    TEMPORARY,
    WORKSPACE,
    Recording,
)
from peftplan.measure.trace.replay import Phase, Replay
from peftplan.specs.formats import allocated_bytes

# In the order in which they are stacked and listed: what stays first, what is short-lived last.
CATEGORIES = (
    *(PARAMETER, BUFFER, ADAPTER, MASTER, OPTIMIZER_STATE, BUCKET, GRADIENT),
    *(INPUT, ACTIVATION, RECOMPUTED, TEMPORARY, KERNEL, WORKSPACE),
)
ROUNDING = "allocator rounding"
NO_MODULE = "outside modules"


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage and what it is for. `phase` and `step` say when it was made."""

    number: int
    num_bytes: int
    category: str
    module: str
    operation: str
    shape: tuple[int, ...]
    dtype: str
    phase: str
    step: int


@dataclass(frozen=True, slots=True)
class Instant:
    """One point of a timeline: allocated bytes after `event` events, by category, in the timeline's order."""

    event: int
    total_bytes: int
    by_category: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Allocated bytes over a run, thinned; the peak of every phase is among the points.

    `peak` is the one that is told of: the highest point, or that of the step that matters.
    """

    categories: tuple[str, ...]
    points: tuple[Instant, ...]
    phases: tuple[Phase, ...]
    peak: Instant


def storage(recording: Recording, replayed: Replay, number: int, born: int) -> Storage:
    """One storage, by its number and the event that made it."""
    phase = phase_at(replayed.phases, born)
    return Storage(
        number=number,
        num_bytes=recording.sizes[number],
        category=recording.text(recording.categories, number),
        module=recording.text(recording.modules, number),
        operation=recording.text(recording.operations, number),
        shape=recording.all_shapes[recording.shapes[number]],
        dtype=recording.text(recording.dtypes, number),
        phase=phase.name,
        step=phase.step,
    )


def phase_at(phases: Sequence[Phase], event: int) -> Phase:
    """The phase in which the event of this number (the first is 1) happened."""
    return phases[max(bisect_right([phase.begin for phase in phases], event - 1) - 1, 0)]


def largest(recording: Recording, replayed: Replay, event: int, count: int = 10) -> list[Storage]:
    """The largest storages alive after the first `event` events, largest first; of equals the older."""
    sizes = recording.sizes
    chosen = set(nlargest(count, recording.alive(event), key=lambda number: sizes[number]))
    born = {code - 1: n for n, code in enumerate(recording.events[:event], 1) if code - 1 in chosen}
    found = [storage(recording, replayed, number, born[number]) for number in chosen]
    return sorted(found, key=lambda one: (-one.num_bytes, one.number))


def by_category(recording: Recording, event: int) -> dict[str, int]:
    """Requested bytes alive after the first `event` events by category, and the allocator's rounding."""
    totals: Counter[str] = Counter()
    rounding = 0
    for number in recording.alive(event):
        size = recording.sizes[number]
        totals[recording.text(recording.categories, number)] += size
        rounding += allocated_bytes(size) - size
    totals[ROUNDING] = rounding
    return {name: totals[name] for name in in_order(totals) if totals[name]}


def in_order(names: Iterable[str]) -> list[str]:
    """Categories in their order; unknown ones behind the known, by name."""
    rank = {name: i for i, name in enumerate(CATEGORIES)}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


# ---- a tree by module

_Kind = tuple[str, str, str, tuple[int, ...]]  # category, operation, dtype, shape


@dataclass(slots=True)
class _Place:
    """A module, or modules alike: what they hold themselves, and what lies below."""

    below: dict[str, _Place] = field(default_factory=dict)
    indices: set[str] = field(default_factory=set)  # which numbers a `*` stands for
    held: dict[_Kind, list[int]] = field(default_factory=dict)  # bytes of each storage of a kind


def tree(recording: Recording, event: int, name: str = "allocated") -> Node:
    """What is alive after the first `event` events by module path; blocks alike are one node `*`.

    The root's bytes are allocated bytes: requested ones and, as a leaf, the allocator's rounding.
    """
    root = _Place()
    rounding = 0
    for number in recording.alive(event):
        size = recording.sizes[number]
        rounding += allocated_bytes(size) - size
        place = root
        path = recording.text(recording.modules, number) or NO_MODULE
        for part in path.split("."):
            index = part.isdigit()
            place = place.below.setdefault("*" if index else part, _Place())
            if index:
                place.indices.add(part)
        key = (
            recording.text(recording.categories, number),
            recording.text(recording.operations, number),
            recording.text(recording.dtypes, number),
            recording.all_shapes[recording.shapes[number]],
        )
        place.held.setdefault(key, []).append(size)
    rounded = leaf(ROUNDING, rounding, "each storage rounded up to 512 bytes", "torch-allocator")
    return branch(name, [*_nodes(root), rounded])


def _nodes(place: _Place) -> list[Node]:
    """The nodes below a place, largest first, and the storages that it holds itself."""
    nodes = [_node(part, below) for part, below in place.below.items()]
    for (category, operation, dtype, shape), sizes in place.held.items():
        what = f"{category}: {operation}" if operation and operation != category else category
        nodes.append(leaf(what, sum(sizes), f"{len(sizes)} × {list(shape)} {dtype}".rstrip()))
    return sorted(nodes, key=lambda node: (-node.bytes, node.name))


def _node(name: str, place: _Place) -> Node:
    """A place as a node; a place with nothing but one place below it takes that one's name behind its own."""
    count = len(place.indices)
    while not place.held and len(place.below) == 1:
        ((part, place),) = place.below.items()
        name = f"{name}.{part}"
        count = max(count, len(place.indices))
    return branch(name, _nodes(place), f"{count} alike" if count > 1 else "")


# ---- a timeline


def timeline(recording: Recording, replayed: Replay, max_points: int = 800, at: int | None = None) -> Timeline:
    """Allocated bytes by category over the events, thinned to at most `max_points`.

    The run is cut into equal stretches of events and each keeps its highest point; beside these the first
    and the last event, the begins of phases and the peak of each are kept, however few points are asked for.
    The timeline's peak is what stands after `at` events, or else the most of the whole run.
    """
    at = replayed.allocated.event if at is None else at
    kept = _kept_events(replayed, max_points, at)
    categories = tuple(in_order(recording.texts[number] for number in set(recording.categories)))
    slot_of = {number: categories.index(recording.texts[number]) for number in set(recording.categories)}
    slot = [slot_of[number] for number in recording.categories]
    rounded = [allocated_bytes(size) for size in recording.sizes]
    now = [0] * len(categories)
    points = []
    done = 0
    for event in kept:
        for code in recording.events[done:event]:
            if code > 0:
                now[slot[code - 1]] += rounded[code - 1]
            else:
                now[slot[-code - 1]] -= rounded[-code - 1]
        done = event
        points.append(Instant(event, replayed.levels[event], tuple(now)))
    peak = next(point for point in points if point.event == at)
    return Timeline(categories, tuple(points), replayed.phases, peak)


def _kept_events(replayed: Replay, max_points: int, at: int) -> list[int]:
    levels = replayed.levels
    last = len(levels) - 1
    kept = {0, last, at}
    for phase in replayed.phases:
        kept |= {phase.begin, phase.peak.event}
    room = max_points - len(kept)
    for i in range(max(room, 0)):
        begin, end = last * i // room, last * (i + 1) // room
        if begin < end:
            stretch = levels[begin + 1 : end + 1]
            kept.add(begin + 1 + stretch.index(max(stretch)))
    return sorted(kept)
