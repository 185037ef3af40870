"""The memory of one optimizer step as a curve in stages, by which a trace and a real run are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch.nn import functional

from peftplan.measure.trace import runner
from peftplan.measure.trace.attention import _MaskAddedInPlace
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.recording import FORWARD, STEP, Recording
from peftplan.measure.trace.tracker import Tracker

NUMBER_BYTES = 8  # a Python float or int as a tensor: float64 or int64
FORWARD_END, BACKWARD_END, STEP_END = "forward end", "backward end", "step end"


@dataclass
class Stage:
    """What lies between two marks: the most that was alive, and the blocks alive at its end, by their sizes."""

    name: str
    peak_bytes: int = 0
    end_bytes: int = 0
    alive: Counter[int] = field(default_factory=Counter)
    # Every block that came, and what went before the next one came, in order of size: which of several
    # tensors that are dropped together goes first is not fixed (autocast's cache is a hash table).
    trail: list[int | tuple[int, ...]] = field(default_factory=list)


@dataclass
class Curve:
    """The last optimizer step of a run; bytes count from its begin."""

    stages: list[Stage]
    sums_in_place: int  # gradients that the engine added into one it owned
    garbage_bytes: int = 0  # what only the garbage collector gave back after the step
    random_states: list[int] = field(default_factory=list)  # alive at the end of each stage
    numbers: list[int] = field(default_factory=list)


def stages(changes: Iterable[int | str]) -> list[Stage]:
    """Signed bytes, and names of marks, which end a stage each."""
    found: list[Stage] = []
    alive: Counter[int] = Counter()
    live = 0
    freed: list[int] = []
    stage = Stage("")
    for change in changes:
        if isinstance(change, int) and change < 0:
            freed.append(-change)
            alive[-change] -= 1
            live += change
            continue
        if freed:
            stage.trail.append(tuple(sorted(freed)))
            freed = []
        if isinstance(change, str):
            stage.name, stage.end_bytes, stage.alive = change, live, +alive
            found.append(stage)
            stage = Stage("", live)
            continue
        stage.trail.append(change)
        alive[change] += 1
        live += change
        stage.peak_bytes = max(stage.peak_bytes, live)
    return found


def traced(job: Job) -> Curve:
    """The trace's last step."""
    sums = Counter[int]()
    asked = Tracker._sums_in_place

    def counted(self: Tracker, args: tuple[Any, ...]) -> bool:
        found = asked(self, args)
        sums[self.step] += found
        return found

    Tracker._sums_in_place = counted  # type: ignore[method-assign]
    try:
        with _masks_added_in_place():
            recording = runner.run(job, lambda *_: None)
    finally:
        Tracker._sums_in_place = asked  # type: ignore[method-assign]
    return Curve(stages(_changes(recording)), sums[recording.last_step()])


@contextmanager
def _masks_added_in_place() -> Iterator[None]:
    """torch's own attention, which a trace on the CPU runs, with what the trace does to its plain form on a GPU."""
    original = functional.scaled_dot_product_attention

    def attend(*args: Any, **kwargs: Any) -> Any:
        with _MaskAddedInPlace():
            return original(*args, **kwargs)

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def _changes(recording: Recording) -> Iterator[int | str]:
    last = recording.last_step()
    marks = [mark for mark in recording.marks if mark.step == last]
    begin = next(mark.event for mark in marks if mark.name == FORWARD)
    names = {FORWARD_END: FORWARD_END, STEP: BACKWARD_END, STEP_END: STEP_END}
    for mark in marks:
        if mark.name in names:
            for code in recording.events[begin : mark.event]:
                number = abs(code) - 1
                size = recording.sizes[number]
                # a number as a tensor, which only under a mode is an operation's result
                if recording.text(recording.operations, number) != "aten::lift_fresh" or size != NUMBER_BYTES:
                    yield size if code > 0 else -size
            begin = mark.event
            yield names[mark.name]
