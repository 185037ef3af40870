"""A played step as a timeline that can be drawn: bytes alive by category from event to event, tensors named.

The closed form plays forward, loss and backward of one micro-step, here every block by itself; the state that
stands below it, and the optimizer's update behind it, are levels of the account. Bytes are rounded as the
allocator rounds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import pairwise

from peftplan.measure.trace import recording as names
from peftplan.measure.trace.analysis import Instant, Timeline, in_order
from peftplan.measure.trace.replay import Peak, Phase
from peftplan.memory.account import Account
from peftplan.memory.graph import Record
from peftplan.memory.overheads import all_workspaces_bytes
from peftplan.memory.step import FORWARD_END, play_step
from peftplan.memory.timeline import Timeline as Played
from peftplan.memory.update import moments
from peftplan.planner import settle
from peftplan.resolve import Plan
from peftplan.units import format_bytes

MOST_POINTS = 240
_STEP = 1  # from 0: the second, when optimizer states are there
_NAMED = 3  # kinds of tensors at every point
_UPDATE_SHARE = 16  # the optimizer's update is drawn this part as wide as the events before it

_Kind = tuple[str, str, str, tuple[int, ...]]  # place, operation, type, shape


@dataclass(frozen=True, slots=True)
class PlayedTimeline:
    """A timeline and, by point, the largest kinds of tensors alive beside the standing state."""

    timeline: Timeline
    largest: tuple[tuple[str, ...], ...]


def played_timeline(plan: Plan, most_points: int = MOST_POINTS) -> PlayedTimeline:
    """One step of a resolved request, thinned to about so many points; the peak of every phase is among them."""
    settled = settle(plan)
    account = settled.account
    played = play_step(settled.model, plan.step, each=True)
    walk = _Walk(played, account)
    levels = list(walk.levels())
    phases = _phases(walk.borders(), levels)
    kept = _kept(phases, levels, most_points)
    points, largest = walk.points(kept)
    update = _update_points(account, walk.categories, points[-1])
    largest += [("what the update holds beside gradients and states",)] * (len(update) - 1) + [()]
    peak = Peak(update[0].total_bytes, update[0].event)
    at_step = Phase(names.STEP, _STEP, phases[-1].end, update[-1].event, peak)
    points += update
    categories = tuple(in_order(walk.categories))
    columns = [walk.categories.index(name) for name in categories]
    ordered = tuple(
        Instant(p.event, p.total_bytes, tuple(p.by_category[column] for column in columns)) for p in points
    )
    highest = max(ordered, key=lambda point: point.total_bytes)
    return PlayedTimeline(Timeline(categories, ordered, (*phases, at_step), highest), tuple(largest))


class _Walk:
    """The events of a played step in their order, above the state that stands."""

    def __init__(self, played: Played, account: Account) -> None:
        self.played, self.records = played, played.records
        # (clock, record, size), the size negative at its end
        self.events = [event for event in moments(self.records) if event[0] <= played.end_clock]
        self.standing = {name: size for name, size in _standing(account) if size}
        self.categories = list(dict.fromkeys([*self.standing, *names.RESIDENT, *map(_category, self.records)]))
        self.categories += [name for name in (names.GRADIENT, names.TEMPORARY) if name not in self.categories]

    def levels(self) -> Iterator[int]:
        """What is allocated after each event, before the first one too."""
        level = sum(self.standing.values())
        yield level
        for _, _, size in self.events:
            level += size
            yield level

    def borders(self) -> list[tuple[str, int]]:
        """Phases with the number of events before them; the end at last."""
        segments = self.played.player.segments
        loss = next(segment.start_clock for segment in segments if segment.name == "loss")
        ended = next(n for n, segment in enumerate(segments) if segment.name == FORWARD_END)
        clocks = ((names.FORWARD, 0), (names.LOSS, loss), (names.BACKWARD, segments[ended + 1].start_clock))
        found = [(name, sum(when <= clock for when, _, _ in self.events)) for name, clock in clocks]
        return [*found, ("", len(self.events))]

    def points(self, kept: Sequence[int]) -> tuple[list[Instant], list[tuple[str, ...]]]:
        """The points after these many events, and the largest kinds of tensors at each."""
        slot = {name: place for place, name in enumerate(self.categories)}
        now = [self.standing.get(name, 0) for name in self.categories]
        held: Counter[_Kind] = Counter()
        count: Counter[_Kind] = Counter()
        kinds = [_kind(record) for record in self.records]
        points, largest, done = [], [], 0
        for event in kept:
            for _, number, size in self.events[done:event]:
                now[slot[_category(self.records[number])]] += size
                held[kinds[number]] += size
                count[kinds[number]] += 1 if size > 0 else -1
            done = event
            points.append(Instant(event, sum(now), tuple(now)))
            most = nlargest(_NAMED, held.items(), key=lambda item: item[1])
            largest.append(tuple(_words(kind, count[kind], size) for kind, size in most if size))
        return points, largest


def _standing(account: Account) -> Iterator[tuple[str, int]]:
    """Allocated bytes of what is there from the begin of the step to its end."""
    resident = account.resident
    yield names.PARAMETER, resident.weights.allocated
    yield names.ADAPTER, resident.adapters.allocated
    yield names.MASTER, resident.master_weights.allocated
    yield names.OPTIMIZER_STATE, resident.optimizer_states.allocated
    yield names.BUCKET, resident.buckets.allocated
    if account.step.accumulating:
        yield names.GRADIENT, resident.gradients.allocated
    yield names.WORKSPACE, all_workspaces_bytes(account.step.compute_capability)


def _update_points(account: Account, categories: Sequence[str], last: Instant) -> list[Instant]:
    """The optimizer's update at its highest, for as wide a stretch as it is drawn, and what stands behind it."""
    level = account.moments["optimizer_step"]
    now = dict(zip(categories, last.by_category))
    resident = account.resident
    freed = account.step.master_weights and level == (
        last.total_bytes + resident.step_temporary.allocated - resident.gradients.allocated
    )
    if freed:  # gradients go as their fp32 copies come
        now[names.GRADIENT] = 0
    now[names.TEMPORARY] += level - sum(now.values())
    after = dict.fromkeys(categories, 0) | {name: size for name, size in _standing(account) if size}
    after[names.GRADIENT] = 0
    width = max(last.event // _UPDATE_SHARE, 1)
    points = [Instant(last.event + at, level, tuple(now.values())) for at in (1, width + 1)]
    return [*points, Instant(last.event + width + 2, sum(after.values()), tuple(after.values()))]


def _category(record: Record) -> str:
    return names.KERNEL if record.op.endswith(" workspace") else record.kind


def _kind(record: Record) -> _Kind:
    place = ".".join("*" if part.isdigit() else part for part in record.module.split("."))
    return place, record.op, record.dtype.short, record.shape


def _words(kind: _Kind, count: int, num_bytes: int) -> str:
    place, operation, dtype, shape = kind
    where = f"{place}: {operation}" if place else operation
    return f"{format_bytes(num_bytes)} {where}, {count} x {dtype}[{', '.join(map(str, shape))}]"


def _phases(borders: Sequence[tuple[str, int]], levels: Sequence[int]) -> list[Phase]:
    phases = []
    for (name, begin), (_, end) in pairwise(borders):
        stretch = levels[begin : end + 1]
        most = max(stretch)
        phases.append(Phase(name, _STEP, begin, end, Peak(most, begin + stretch.index(most))))
    return phases


def _kept(phases: Sequence[Phase], levels: Sequence[int], most: int) -> list[int]:
    """Events whose points are kept: borders and peaks of phases, and the highest of equal stretches."""
    last = len(levels) - 1
    kept = {0, last, *(phase.begin for phase in phases), *(phase.peak.event for phase in phases)}
    for number in range(most):
        begin, end = last * number // most, last * (number + 1) // most
        if begin < end:
            stretch = levels[begin + 1 : end + 1]
            kept.add(begin + 1 + stretch.index(max(stretch)))
    return sorted(kept)
