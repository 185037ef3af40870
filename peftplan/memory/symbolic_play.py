"""Steps alike but for their batch and length: played once with both left open, and read for any of them.

The play with open numbers (`symbolic`) leaves the sizes of all allocations as expressions, in the order in which
they are born and die. For a batch and a length whose questions have the same answers the tape is the same, and
its levels are summed up from the sizes there. Where they have other answers, or a program does with a size what no
expression says, the step is played anew.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from copy import copy
from dataclasses import replace
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple

from peftplan.memory.graph import Record, Segment
from peftplan.memory.player import Player
from peftplan.memory.step import run_evaluation, run_step
from peftplan.memory.symbolic import Book, Symbol
from peftplan.memory.symbolic_program import NotAlike, Program
from peftplan.memory.timeline import Timeline, births_and_deaths, read_timeline
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec

# What comes of a program that does with a size what has no expression; the step is then played with numbers.
NO_EXPRESSION = (TypeError, AttributeError, ArithmeticError, NotAlike)
_HIGHEST = 1 << 200  # above every level


class _Unread:
    """A level that nobody may read while sizes are open: what is added to it is lost."""

    __slots__ = ()

    def __add__(self, other: Any) -> _Unread:
        return self

    __sub__ = __radd__ = __add__

    def __gt__(self, other: Any) -> bool:
        if other != _HIGHEST:
            raise TypeError("levels are not known while sizes are open")
        return False


_UNREAD: Any = _Unread()


class _OpenPlayer(Player):
    """The tape without levels."""

    def __init__(self, accumulating: bool = False) -> None:
        super().__init__(accumulating)
        self.level_bytes = self.requested_bytes = _UNREAD
        self.peak_bytes = _HIGHEST

    def mark(self, name: str) -> None:
        super().mark(name)
        self.peak_bytes = _HIGHEST

    def release_kept(self) -> bool:
        """As the player's, told from deaths instead of levels."""
        kept = self.kept
        self.handed_back.clear()
        while kept:
            alive = [record for record in self.records if not record.died]
            layer = kept.pop()[0]
            died = [record for record in alive if record.died]
            size = sum(record.size for record in died)
            if layer >= 0 and size > 0:
                before = self.dropped.get(layer, (0, 0))
                self.dropped[layer] = (before[0] + size, before[1] + sum(record.nbytes for record in died))
        return bool(self.dropped)


class _Results:
    """Expressions to be computed, each once: `add` says where its value will stand."""

    def __init__(self) -> None:
        self.wanted: list[Any] = []
        self._places: dict[Any, int] = {}

    def add(self, x: Any) -> int:
        key = ("open", x.terms) if x.__class__ is Symbol else x
        if key not in self._places:
            self._places[key] = len(self.wanted)
            self.wanted.append(x)
        return self._places[key]


class _Tape:
    """Births and deaths of an open play, by clock, and its marks."""

    def __init__(self, t: Player, results: _Results) -> None:
        self.num_marks = len(t.segments)
        self.clocks = [segment.start_clock for segment in t.segments]
        self.names = [segment.name for segment in t.segments]
        until = self.clocks[-1]
        zero = results.add(0)
        self.sizes = [results.add(record.size) for record in t.records]
        self.requested = [results.add(record.nbytes) for record in t.records]
        rounded, exact = [zero] * (until + 1), [zero] * (until + 1)
        for record, size, nbytes in zip(t.records, self.sizes, self.requested):
            if record.born <= until:
                rounded[record.born], exact[record.born] = size, nbytes
            if 0 < record.died <= until:
                rounded[record.died] = results.add(-record.size)
                exact[record.died] = results.add(-record.nbytes)
        self.rounded_at, self.exact_at = itemgetter(*rounded), itemgetter(*exact)
        self.totals = [
            (results.add(segment.end_gradient_bytes), results.add(segment.end_held_bytes)) for segment in t.segments
        ]

    def peaks(self, values: Sequence[Any]) -> list[int]:
        """The highest level of each segment but the last, rounded bytes."""
        levels = list(accumulate(self.rounded_at(values)))
        clocks = self.clocks
        return [max(levels[clocks[i] : clocks[i + 1] + 1]) for i in range(self.num_marks - 1)]

    def segments(self, values: Sequence[Any]) -> list[Segment]:
        """The segments as a play with numbers leaves them."""
        levels = list(accumulate(self.rounded_at(values)))
        requested = list(accumulate(self.exact_at(values)))
        made = []
        for number, (name, start) in enumerate(zip(self.names, self.clocks)):
            segment = Segment(name, levels[start], requested[start], start)
            made.append(segment)
            if number + 1 == self.num_marks:
                break
            end = self.clocks[number + 1]
            peak = max(levels[start : end + 1])
            segment.peak_bytes, segment.peak_clock = peak, levels.index(peak, start, end + 1)
            segment.end_bytes, segment.end_requested = levels[end], requested[end]
            gradients, held = self.totals[number]
            segment.end_gradient_bytes, segment.end_held_bytes = values[gradients], values[held]
        return made


class _RecordMaker:
    """Records of a play with their sizes and shapes as numbers."""

    def __init__(self, records: Sequence[Record], results: _Results) -> None:
        shapes: dict[tuple[int, ...], int] = {}
        self.rows = []
        for r in records:
            places = tuple(results.add(dim) for dim in r.shape)
            shape = shapes.setdefault(places, len(shapes))
            read = None if r.read is None else results.add(r.read)
            sizes = results.add(r.nbytes), results.add(r.size), read, results.add(r.num_flop)
            self.rows.append((*sizes, shape, r.born, r.died, r.op, r.module, r.dtype, r.kind))
        self.shapes = list(shapes)

    def make(self, values: Sequence[Any]) -> list[Record]:
        shapes = [tuple([values[place] for place in places]) for places in self.shapes]
        made = []
        for nbytes, size, read, num_flop, shape, born, died, op, module, dtype, kind in self.rows:
            record = Record(
                values[nbytes],
                values[size],
                born,
                op,
                module,
                shapes[shape],
                dtype,
                kind,
                None if read is None else values[read],
                values[num_flop],
            )
            record.died = died
            made.append(record)
        return made


class _ReadPlayer(Player):
    """What is left of a tape when its step has been read for a batch and a length; records on demand."""

    made_by: tuple[_RecordMaker, _RecordMaker, list[Any]]

    def __getattr__(self, name: str) -> Any:
        if name not in ("records", "in_place"):
            raise AttributeError(name)
        births, launches, values = self.made_by
        self.records, self.in_place = births.make(values), launches.make(values)
        return self.__dict__[name]


class OpenStep:
    """A step played with its batch and length left open."""

    def __init__(self, model: ModelSpec, step: StepSpec, left: int, each: bool = False) -> None:
        book = Book((step.micro_batch, step.seq_len, left) if left else (step.micro_batch, step.seq_len))
        asked = replace(step, micro_batch=book.open[0], seq_len=book.open[1])
        player = _OpenPlayer(step.accumulating)
        self.timeline, self.end_segment = run_step(player, model, asked, book.open[2] if left else 0, each)
        self.player, results = player, _Results()
        self.tape = _Tape(player, results)
        self.births = _RecordMaker(player.records, results)
        order = births_and_deaths(player.records)
        self.keys = [key for key, _, _ in order]
        sizes = [results.add(sign * player.records[number].size) for _, number, sign in order]
        self.sizes_in_order = itemgetter(*sizes)
        self.launches = _RecordMaker(player.in_place, results)
        timeline = self.timeline
        self.inputs = results.add(timeline.inputs_requested), results.add(timeline.inputs_bytes)
        self.gone = [
            [(key, results.add(size), results.add(nbytes)) for key, (size, nbytes) in dead.items()]
            for dead in (player.cleared, player.dropped)
        ]
        self.program = Program(book, results.wanted)
        self.left, self.book = bool(left), book
        self.tables: dict[Hashable, _Table | None] = {}
        self.made: dict[Hashable, Any] = {}

    def read(self, step: StepSpec, left: int) -> Timeline:
        """The timeline for this batch and length; raises NotAlike where the tape would be another."""
        if bool(left) is not self.left:
            raise NotAlike
        numbers = (step.micro_batch, step.seq_len, left) if left else (step.micro_batch, step.seq_len)
        values = self.program.run(numbers)
        player = _ReadPlayer.__new__(_ReadPlayer)
        kept = player.__dict__
        kept.update(self.player.__dict__)
        del kept["records"], kept["in_place"]
        player.made_by = (self.births, self.launches, values)
        player.segments = self.tape.segments(values)
        player.cleared, player.dropped = (
            {key: (values[size], values[nbytes]) for key, size, nbytes in dead} for dead in self.gone
        )
        timeline = copy(self.timeline)
        timeline.player = player
        timeline.phases, timeline.backward_clocks = {}, {}
        timeline.own_changes = list(zip(self.keys, self.sizes_in_order(values)))
        timeline.inputs_requested, timeline.inputs_bytes = (values[place] for place in self.inputs)
        timeline.opened = _At(self, numbers)
        read_timeline(timeline, self.end_segment)
        return timeline


class _Table:
    """Rows that are read from an open step once: those alike are one, with a count."""

    def __init__(self, book: Book, rows: Iterable[tuple[tuple[Any, ...], int]]) -> None:
        results = _Results()
        counts: dict[tuple[int, ...], int] = {}
        for row, count in rows:
            places = tuple(results.add(cell) for cell in row)
            counts[places] = counts.get(places, 0) + count
        self.rows = [(itemgetter(*places), count) for places, count in counts.items()]
        self.program = Program(book, results.wanted)


class _At(NamedTuple):
    """An open step at one batch and length."""

    step: OpenStep
    numbers: tuple[int, ...]

    def table(
        self, name: Hashable, read: Callable[[Timeline], Iterable[tuple[tuple[Any, ...], int]]]
    ) -> Iterable[tuple[tuple[Any, ...], int]] | None:
        tables = self.step.tables
        try:
            if name not in tables:
                tables[name] = None  # should this fail, it fails for every batch and length
                tables[name] = _Table(self.step.book, read(self.step.timeline))
            table = tables[name]
            if table is None:
                return None
            values = table.program.run(self.numbers)
        except NO_EXPRESSION:
            return None
        return [(cells(values), count) for cells, count in table.rows]

    def once(self, name: Hashable, make: Callable[[], Any]) -> Any:
        made = self.step.made
        if name not in made:
            made[name] = make()
        return made[name]


class OpenEvaluation:
    """A forward pass without gradients, its batch and length left open."""

    def __init__(self, model: ModelSpec, step: StepSpec) -> None:
        book = Book((step.micro_batch, step.seq_len))
        player, results = _OpenPlayer(), _Results()
        run_evaluation(player, model, replace(step, micro_batch=book.open[0], seq_len=book.open[1]))
        self.tape = _Tape(player, results)
        self.program = Program(book, results.wanted)

    def read(self, step: StepSpec) -> int:
        """The highest level, as `play_evaluation` finds it."""
        return max(self.tape.peaks(self.program.run((step.micro_batch, step.seq_len))))
