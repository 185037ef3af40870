"""The memory history of one real step, made a recording as the trace leaves it. No torch here.

A log says which block came and went, at which address, and has notes between: where a phase begins, where a
block of the model is entered or left again, what the tensors at some addresses are for. What has no such
name is told apart as the trace does it: by the phase that it was made in, and by whether a module ran.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from peftplan.measure.trace.recording import (
    ACTIVATION,
    ADAPTER,
    BACKWARD,
    BUFFER,
    FORWARD,
    LOAD,
    LOSS,
    PARAMETER,
    RECOMPUTED,
    STEP,
    TEMPORARY,
    Mark,
    Recording,
)
from peftplan.measure.trace.replay import FORWARD_END

_LOADED = (PARAMETER, BUFFER, ADAPTER)
_PHASES = (FORWARD, LOSS, BACKWARD, STEP)


@dataclass(frozen=True, slots=True)
class Change:
    """A block that came (`num_bytes` requested, above 0) or went (0)."""

    address: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Note:
    """A moment of the loop, a block of the model entered or left, or what tensors are for."""

    moment: str = ""
    depth: int = 0  # +1: a block of the model is entered, -1: left
    category: str = ""
    addresses: tuple[int, ...] = ()


@dataclass(slots=True)
class History:
    """What stood when the step began, and the log of the step.

    `named` says what some of it is for; of the rest a model keeps what an earlier step has left, like a buffer.
    """

    standing: Sequence[tuple[int, int]]  # address, requested bytes
    named: dict[int, str]  # address -> category
    log: Iterable[Change | Note] = field(default_factory=list)


def recording_of(history: History) -> Recording:
    """The recording of one step: what stood is born first, in the trace's order."""
    found = _Recorder()
    loaded = [block for block in history.standing if history.named.get(block[0]) in _LOADED]
    later = [block for block in history.standing if history.named.get(block[0]) not in _LOADED]
    for address, num_bytes in loaded:
        found.born(address, num_bytes, history.named[address])
    found.mark(LOAD)
    for address, num_bytes in later:
        found.born(address, num_bytes, history.named.get(address, BUFFER))
    for entry in history.log:
        if isinstance(entry, Note):
            found.note(entry)
        elif entry.num_bytes:
            found.born(entry.address, entry.num_bytes, found.category())
        else:
            found.gone(entry.address)
    return found.recording


class _Recorder:
    def __init__(self) -> None:
        self.recording = Recording(texts=[""], all_shapes=[()])
        self._texts = {"": 0}
        self._living: dict[int, int] = {}
        self._phase = LOAD
        self._forward_ended = False
        self._depth = 0

    def mark(self, name: str) -> None:
        self.recording.marks.append(Mark(name, 0, len(self.recording.events)))

    def note(self, note: Note) -> None:
        if note.moment in _PHASES:
            self._phase = note.moment
            self._depth = 0
            self._forward_ended = self._forward_ended and note.moment != FORWARD
        if note.moment:
            self._forward_ended = self._forward_ended or note.moment == FORWARD_END
            self.mark(note.moment)
        self._depth = max(0, self._depth + note.depth)
        for address in note.addresses:
            number = self._living.get(address)
            if number is not None:
                self.recording.categories[number] = self._text(note.category)

    def category(self) -> str:
        if self._phase == FORWARD or (self._phase == LOSS and not self._forward_ended):
            return ACTIVATION
        return RECOMPUTED if self._depth and self._phase in (LOSS, BACKWARD) else TEMPORARY

    def born(self, address: int, num_bytes: int, category: str) -> None:
        recording = self.recording
        number = len(recording.sizes)
        recording.sizes.append(num_bytes)
        recording.categories.append(self._text(category))
        for column in (recording.operations, recording.modules, recording.dtypes, recording.shapes):
            column.append(0)
        recording.events.append(number + 1)
        self._living[address] = number

    def gone(self, address: int) -> None:
        number = self._living.pop(address, None)
        if number is not None:
            self.recording.events.append(-(number + 1))

    def _text(self, text: str) -> int:
        if text not in self._texts:
            self._texts[text] = len(self.recording.texts)
            self.recording.texts.append(text)
        return self._texts[text]
