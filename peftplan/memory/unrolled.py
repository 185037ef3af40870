"""A micro-step's allocations and frees in their true order, for every block of the model.

Blocks that are alike do alike, so a long row of them is played short (`short_rows`). What the unit in the middle of
a stretch does is a section that runs once for each unit left out, with what neighbours hand each other: a tensor
that a unit leaves to the next one is freed there as the played ones free it. Where played units differ in what they
do, all blocks are played.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from peftplan.memory.passing import STATE
from peftplan.memory.short_rows import Stretch, shortened
from peftplan.memory.step import EARLIER, FORWARD_END, play_step
from peftplan.memory.timeline import Timeline
from peftplan.memory.update import Event, moments, standing_parameters
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.run import StepSpec


@dataclass(frozen=True, slots=True)
class Section:
    """Events that run once for each of `copies`; the keys of copy `n` are those given and `n` times `stride`."""

    events: list[Event]
    copies: range = range(1)
    stride: int = 0


@dataclass(slots=True)
class MicroStep:
    """One micro-step: its inputs, then forward, then backward, and what is alive at its end.

    `gradients` come in the order of the trained tensors, None for one that has none; `held` is what ends with
    the loss.
    """

    inputs: list[Event] = field(default_factory=list)
    forward: list[Section] = field(default_factory=list)
    backward: list[Section] = field(default_factory=list)
    gradients: list[Event | None] = field(default_factory=list)
    held: list[Event] = field(default_factory=list)
    earlier: int | None = None  # what stands for that which the micro-step before held
    next_key: int = 0


def unroll(model: ModelSpec, step: StepSpec, first_key: int = 0) -> MicroStep:
    """Play the step and write its events out for every block; keys are numbers from `first_key` on."""
    short, stretches = shortened(model.runs)
    if stretches and not model.plays_each:
        made = replace(model, runs=short)
        of_runs = [(short, stretches)]
        if model.reference is not None:
            of_runs.append(shortened(model.reference.runs))
            made.reference = replace(model.reference, runs=of_runs[1][0])
        timeline = play_step(made, step, each=True)
        stretches = [*stretches, *_of_passes(timeline, of_runs)]
        try:
            return _Writer(model, timeline, stretches, first_key).write()
        except _Irregular:
            pass
    return _Writer(model, play_step(model, step, each=True), [], first_key).write()


def _of_passes(timeline: Timeline, of_runs: Sequence[tuple[list[BlockRun], list[Stretch]]]) -> Iterator[Stretch]:
    """The stretches of passes without a graph, whose visits are counted behind those of the trained one."""
    before = len(timeline.plays)
    for runs, plays in timeline.passing:
        stretches = next(stretches for short, stretches in of_runs if short is runs)
        yield from (replace(one, begin=one.begin + before, end=one.end + before) for one in stretches)
        before += len(plays)


class _Irregular(Exception):
    """Units that do not follow one another as they must for one to stand for others."""


class _Writer:
    """Writes the events of a short play out: a record's key is its number, and the stride for each further copy."""

    def __init__(self, model: ModelSpec, timeline: Timeline, stretches: Sequence[Stretch], first_key: int) -> None:
        self.model, self.timeline, self.stretches = model, timeline, stretches
        self.first_key = first_key
        self.records = timeline.records
        self.stride = len(self.records)
        self.visit_of = _visits(timeline)
        self.templates, self.died_in = _by_segment(timeline)
        # of a record of a unit beside the middle: that of the middle in its place, and which copy it would be
        self.twins: dict[int, tuple[int, int]] = {}
        self.middle: dict[int, Stretch] = {}  # by record

    def write(self) -> MicroStep:
        """The whole model's events."""
        for stretch in self.stretches:
            self._pair(stretch)
        segments = self.timeline.player.segments
        end = len(segments) - 1
        found = MicroStep()
        found.inputs = [self._born(n) for n, r in enumerate(self.records) if r.kind == "input"]
        found.earlier = next((self._key(n) for n, r in enumerate(self.records) if r.op == EARLIER), None)
        forward_end = next(n for n, segment in enumerate(segments) if segment.name == FORWARD_END)
        found.forward = list(self._sections(0, forward_end))
        found.backward = list(self._sections(forward_end, end))
        found.gradients = list(self._gradients())
        for number, (record, place) in enumerate(zip(self.records, self.died_in)):
            if record.size and (place < 0 or place == end) and record.kind not in ("gradient", "input", STATE):
                found.held += self._everywhere(number)
        most = max((stretch.copies for stretch in self.stretches), default=0)
        found.next_key = self._key(0, most + 2)
        return found

    def _sections(self, number: int, end: int) -> Iterator[Section]:
        """Segments that follow one another, those of a stretch as one section."""
        while number < end:
            stretch = self._stretch_at(number)
            first = number
            while number < end and self._stretch_at(number) is stretch:
                number += 1
            events = [event for one in range(first, number) for event in self._segment(one, stretch)]
            if stretch is None:
                yield Section(events)
            elif self.visit_of[first][1]:
                yield Section(events, range(stretch.copies, -1, -1), self.stride)
            else:
                yield Section(events, range(stretch.copies + 1), self.stride)

    def _stretch_at(self, number: int) -> Stretch | None:
        visit = self.visit_of[number][0]
        for stretch in self.stretches:
            if stretch.begin <= visit < stretch.end:
                return stretch
        return None

    def _pair(self, stretch: Stretch) -> None:
        """Find the twins of a stretch: the units beside the middle must allocate what it does."""
        period = stretch.end - stretch.begin
        births: dict[tuple[int, bool], list[int]] = {}
        for number, (visit, backward) in enumerate(self.visit_of):
            if stretch.begin - period <= visit < stretch.end + period:
                born = births.setdefault((visit, backward), [])
                born += [record for record, size in self.templates[number] if size > 0]
        for visit in range(stretch.begin, stretch.end):
            for backward in (False, True):
                middle = births.get((visit, backward), [])
                self.middle.update((record, stretch) for record in middle)
                for away, copy in ((-period, -1), (period, stretch.copies + 1)):
                    beside = births.get((visit + away, backward), [])
                    if [self.records[r].size for r in beside] != [self.records[r].size for r in middle]:
                        raise _Irregular
                    self.twins.update((r, (twin, copy)) for r, twin in zip(beside, middle))

    def _key(self, record: int, copy: int = 0) -> int:
        """The key of a record: as a copy of the middle's, or of where it is its twin."""
        record, copy = self.twins.get(record, (record, copy))
        return self.first_key + record + (copy + 1) * self.stride

    def _born(self, record: int, copy: int = 0) -> Event:
        return self._key(record, copy), self.records[record].size

    def _everywhere(self, record: int) -> list[Event]:
        """The births of a record in every copy."""
        owner = self.middle.get(record)
        return [self._born(record, copy) for copy in range(owner.copies + 1 if owner else 1)]

    def _segment(self, number: int, stretch: Stretch | None) -> Iterator[Event]:
        """The events of a segment as it was played, or as copy 0 of its stretch."""
        for record, size in self.templates[number]:
            owner = self.middle.get(record)
            own = stretch is not None and owner is stretch
            if self.records[record].kind == "input":
                continue
            if size > 0 or own:
                yield self._key(record), size
            elif stretch is not None:
                twin, copy = self.twins.get(record, (-1, 0))
                if twin < 0 or self.middle[twin] is not stretch:
                    raise _Irregular
                yield self._key(twin, -1 if copy < 0 else 1), size
            elif owner is None:
                yield self._key(record), size
            else:
                for copy in self._freed_outside(record, number, owner):
                    yield self._key(record, copy), size

    def _freed_outside(self, record: int, number: int, stretch: Stretch) -> Sequence[int]:
        """Which copies of a middle unit's tensor a segment outside of it frees: that beside it, or all of them."""
        visit = self.visit_of[number][0]
        if visit >= 0:
            away = -1 if visit >= stretch.end else stretch.copies + 1
            for beside, (twin, copy) in self.twins.items():
                if twin == record and copy == away and self._stretch_at(self.died_in[beside]) is stretch:
                    return [stretch.copies if away < 0 else 0]
        return range(stretch.copies + 1)

    def _gradients(self) -> Iterator[Event | None]:
        """The births of gradients, in the order of the trained tensors."""
        numbers = {id(record): number for number, record in enumerate(self.records)}
        made = {place: numbers[id(g.storage.record)] for place, g in self.timeline.player.grads.items()}
        of_stem = {parameter: number for (parameter, _), number in made.items()}
        visits = self._true_visits()
        for parameters, run in standing_parameters(self.model):
            trained = [id(parameter) for parameter in parameters if parameter.edge is not None]
            if run is None:
                numbers_here = [of_stem.get(parameter) for parameter in trained]
                yield from (None if number is None else self._born(number) for number in numbers_here)
                continue
            for visit, copy in islice(visits, run.count):
                layer = self.timeline.plays[visit].layer
                numbers_here = [made.get((parameter, layer)) for parameter in trained]
                yield from (
                    None if number is None else self._gradient(number, visit, copy) for number in numbers_here
                )

    def _gradient(self, record: int, visit: int, copy: int) -> Event:
        """The birth of a gradient of a unit: one row's sum is what the unit beside it made and handed over."""
        inside = any(stretch.begin <= visit < stretch.end for stretch in self.stretches)
        if not inside or record not in self.twins:
            return self._born(record, copy)
        middle, beside = self.twins[record]
        away = -1 if beside < 0 else 1
        return self.first_key + middle + (copy + away + 1) * self.stride, self.records[record].size

    def _true_visits(self) -> Iterator[tuple[int, int]]:
        """Every block of the model: the visit that stands for it, and which copy it is."""
        begins = {stretch.begin: stretch for stretch in self.stretches}
        visit = 0
        while visit < len(self.timeline.plays):
            stretch = begins.get(visit)
            if stretch is None:
                yield visit, 0
                visit += 1
                continue
            for copy in range(stretch.copies + 1):
                yield from ((one, copy) for one in range(stretch.begin, stretch.end))
            visit = stretch.end


def _visits(timeline: Timeline) -> list[tuple[int, bool]]:
    """By segment: the block at work, or -1, and whether it is the backward pass."""
    segments = timeline.player.segments
    found = [(-1, False)] * len(segments)
    passing = [play for _, plays in timeline.passing for play in plays]
    for visit, play in enumerate((*timeline.plays, *passing)):
        found[play.forward_segment] = (visit, False)
    ends = {play.name + " backward done": visit for visit, play in enumerate(timeline.plays)}
    for number, segment in enumerate(segments[1:]):
        if segment.name in ends:
            found[number] = (ends[segment.name], True)
    return found


def _by_segment(timeline: Timeline) -> tuple[list[list[tuple[int, int]]], list[int]]:
    """Each segment's events in order, by record, and the segment that each record dies in, or -1."""
    segments = timeline.player.segments
    starts = [segment.start_clock for segment in segments[1:]]
    templates: list[list[tuple[int, int]]] = [[] for _ in segments]
    died_in = [-1] * len(timeline.records)
    at = 0
    for clock, number, size in moments(timeline.records):
        while at < len(starts) and starts[at] < clock:
            at += 1
        templates[at].append((number, size))
        if size < 0:
            died_in[number] = at
    return templates, died_in
