"""A played step and its reading: levels over all blocks, of which each kind was played only once or twice.

Blocks that are alike add the same bytes in forward, and in backward free them and add their gradients. The
reading walks the model's blocks in their true order, run by run, and takes every block's figures from the
play that stands for it; within a run levels are linear, so its peak is at its first or last block.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from peftplan.memory.graph import Record
from peftplan.memory.player import Player
from peftplan.specs.model import BlockRun

# A mark in the loss: the autocast region has ended, and the output is yet to be handed out.
AUTOCAST_LEFT = "autocast left"


@dataclass(slots=True)
class Play:
    """One block played for `count` alike."""

    name: str
    layer: int
    count: int
    forward_segment: int = 0


@dataclass(slots=True)
class Moment:
    """The highest level of a phase: where it is on the tape and how far the copied blocks have come."""

    bytes: int = 0
    clock: int = 0
    # per play: (copies whose saved tensors are alive, copies whose gradients are there), both counted
    # beyond what the tape itself holds at the clock; negative where the tape is ahead of the model
    copies: tuple[tuple[int, int], ...] = ()


class Opened(Protocol):
    """A step that is known for any batch and length, at those of this timeline."""

    def table(
        self, name: Hashable, read: Callable[[Timeline], Iterable[tuple[tuple[Any, ...], int]]]
    ) -> Iterable[tuple[tuple[Any, ...], int]] | None:
        """Rows, each with a count behind it, that `read` finds in any such step; None where sizes decide."""

    def once(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """What is the same for every batch and length: made the first time."""


@dataclass(slots=True)
class Timeline:
    """A played step. Levels count the allocator's rounded bytes above the resident state."""

    player: Player
    plays: list[Play]
    order: list[tuple[int, int]] = field(default_factory=list)  # (play, how many blocks) along the model
    # passes without a graph, each of every block: the model's runs, and the plays of its blocks
    passing: list[tuple[list[BlockRun], list[Play]]] = field(default_factory=list)
    phases: dict[str, Moment] = field(default_factory=dict)
    forward_end_bytes: int = 0  # rounded
    forward_end_requested: int = 0
    loss_forward_bytes: int = 0  # rounded, the most while the loss is computed
    end_bytes: int = 0  # rounded, gradients included
    inputs_requested: int = 0
    inputs_bytes: int = 0  # rounded
    forward_end_clock: int = 0
    end_clock: int = 0
    end_copies: tuple[tuple[int, int], ...] = ()
    backward_clocks: dict[str, tuple[int, int]] = field(default_factory=dict)  # by play

    own_changes: list[tuple[int | None, int]] | None = None
    opened: Opened | None = None  # where it was read from a step whose batch and length are open

    @property
    def records(self) -> list[Record]:
        """Every allocation of the step, in the order of birth."""
        return self.player.records

    def changes(self) -> list[tuple[int | None, int]]:
        """Births and deaths in their order: the number of a record, and its size, negative at its end.

        The end of a gradient, which the optimizer step outlives, has no number.
        """
        if self.own_changes is None:
            records = self.records
            self.own_changes = [
                (key, sign * records[number].size) for key, number, sign in births_and_deaths(records)
            ]
        return self.own_changes


def births_and_deaths(records: Sequence[Record]) -> list[tuple[int | None, int, int]]:
    """For each birth and death in their order: how it is called, the number of its record, and 1 or -1."""
    clocks = [(record.born, number, 1) for number, record in enumerate(records)]
    clocks += [(record.died, number, -1) for number, record in enumerate(records) if record.died]
    return [
        (None if sign < 0 and records[number].kind == "gradient" else number, number, sign)
        for _, number, sign in sorted(clocks)
    ]


def read_timeline(timeline: Timeline, end_segment: int) -> None:
    """Settle phase peaks and levels; `end_segment` opens at the end of forward."""
    reader = _Reader(timeline, end_segment)
    reader.forward()
    reader.backward()


class _Reader:
    """The walk along the model: `level` and `requested` are those of the whole model."""

    def __init__(self, timeline: Timeline, end_segment: int) -> None:
        self.timeline, self.end_segment = timeline, end_segment
        self.segments, self.plays = timeline.player.segments, timeline.plays
        self.level = self.requested = 0
        self.phases = {name: Moment() for name in ("forward", "loss", "backward")}
        self.freed = [0] * len(self.plays)  # what one copy gives back in backward
        self.held = [0] * len(self.plays)  # what one copy's graph holds until it goes
        self.alive = [0] * len(self.plays)  # blocks whose saved tensors are there

    def consider(self, phase: str, level: int, clock: int, on_tape: int, backward: bool) -> None:
        """Note a level if it is a phase's highest; plays below `on_tape` are alive on the tape then."""
        if level <= self.phases[phase].bytes:
            return
        copies = []
        for i, play in enumerate(self.plays):
            done = play.count - self.alive[i] if backward else 0
            before = i < on_tape
            if backward:
                done -= i == on_tape  # the one at work
                done -= i > on_tape
            copies.append((self.alive[i] - before, done))
        self.phases[phase] = Moment(level, clock, tuple(copies))

    def visits(
        self, order: list[tuple[int, int]], own: list[int], start: int, stop: int
    ) -> list[tuple[int, int, int]]:
        """(segment, play or -1, blocks) in the model's order: blocks, and what the tape has between them."""
        found: list[tuple[int, int, int]] = []
        blocks = set(own)
        for i, count in order:
            found += [(number, -1, 1) for number in range(start, own[i]) if number not in blocks]
            found.append((own[i], i, count))
            start = max(start, own[i] + 1)
        return found + [(number, -1, 1) for number in range(start, stop) if number not in blocks]

    def forward(self) -> None:
        """From the first allocation to the loss."""
        player, timeline, segments = self.timeline.player, self.timeline, self.segments
        own = [play.forward_segment for play in self.plays]
        on_tape = 0
        in_loss = dropped = False
        for number, i, count in self.visits(timeline.order, own, 0, self.end_segment):
            segment = segments[number]
            if segment.name == AUTOCAST_LEFT:
                self.drop(player.cleared)
                dropped = True
            delta = segment.end_bytes - segment.start_bytes
            last = self.level + (count - 1) * delta
            if i >= 0:
                on_tape = i
                held = segment.end_held_bytes - segments[number - 1].end_held_bytes
                layer = self.plays[i].layer
                gone = player.cleared.get(layer, (0, 0))[0] + player.dropped.get(layer, (0, 0))[0]
                self.held[i] = held
                self.freed[i] = delta - held - gone
                self.alive[i] += count - 1
            in_loss = in_loss or segment.name == "loss"
            phase = "loss" if in_loss else "forward"
            above = segment.peak_bytes - segment.start_bytes
            self.consider(phase, last + above, segment.peak_clock, on_tape, False)
            if i >= 0:
                self.alive[i] += 1
                on_tape = max(on_tape, i + 1)
            self.level = last + delta
            self.requested += count * (segment.end_requested - segment.start_requested)
            if segment.name == "head":
                self.drop(player.dropped)
        timeline.loss_forward_bytes = self.phases["loss"].bytes
        # the autocast cache is dropped at the end of forward, for every block at once
        if not dropped:
            self.drop(player.cleared)
        timeline.forward_end_bytes, timeline.forward_end_requested = self.level, self.requested

    def drop(self, dead: dict[int, tuple[int, int]]) -> None:
        """Take off what died at once in every block; the tape itself saw it in one block of a kind."""
        for play in self.plays:
            size, nbytes = dead.get(play.layer, (0, 0))
            self.level -= (play.count - 1) * size
            self.requested -= (play.count - 1) * nbytes

    def backward(self) -> None:
        """From the loss to the last gradient."""
        player, timeline, segments = self.timeline.player, self.timeline, self.segments
        names = {play.name + " backward done": i for i, play in enumerate(self.plays)}
        own = [0] * len(self.plays)
        stop = len(segments) - 1
        for number in range(self.end_segment, stop):
            i = names.get(segments[number + 1].name, -1)
            if i >= 0:
                own[i] = number
                clocks = (segments[number].start_clock, segments[number + 1].start_clock)
                timeline.backward_clocks[self.plays[i].name] = clocks
        on_tape = len(self.plays)
        order = timeline.order[::-1]
        for number, i, count in self.visits(order, own, self.end_segment, stop):
            segment = segments[number]
            delta = segment.end_bytes - segment.start_bytes
            phase = "loss" if number == self.end_segment else "backward"
            above = segment.peak_bytes - segment.start_bytes
            if i < 0:
                self.consider(phase, self.level + above, segment.peak_clock, on_tape, True)
                self.level += delta
                continue
            on_tape = i
            gained = segment.end_gradient_bytes - segments[number - 1].end_gradient_bytes
            each = gained - self.freed[i]
            self.alive[i] -= 1
            self.consider(phase, self.level + above, segment.peak_clock, i, True)
            self.level += (count - 1) * each
            self.alive[i] -= count - 1
            self.consider(phase, self.level + above, segment.peak_clock, i, True)
            self.level += each
            if not self.alive[i]:
                # what all blocks of the kind share goes with the last of them (rotary tables)
                self.level += delta - each
        if player.graph_gone:  # in every block; the tape saw it in one of a kind
            self.level -= sum((play.count - 1) * held for play, held in zip(self.plays, self.held))
        timeline.end_bytes = self.level
        timeline.end_copies = tuple((0, play.count - 1) for play in self.plays)
        timeline.phases = self.phases
