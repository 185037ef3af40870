"""Memory of a run on the CPU: every allocation and release that torch's profiler hears of in one step.

Three kinds of blocks are left out, which no GPU run has and no fake tensor shows: what one kernel takes and
gives back (oneDNN's buffers, copies of operands), the generator's state that a checkpoint keeps, and Python
numbers that meet a tensor. They are known by where they come from, not by their size.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

from peftplan.measure.profile.build import Built
from peftplan.measure.profile.history import Change, History, Note
from peftplan.measure.profile.meter import Meter, standing

_NOTE = "peftplan: "
_NUMBER_BYTES = 8  # float64 or int64


class CpuMeter(Meter):
    """Reads the log of torch's profiler."""

    def __init__(self) -> None:
        super().__init__()
        self._notes: list[Note] = []

    def write(self, note: Note) -> None:
        with record_function(f"{_NOTE}{len(self._notes)}"):
            pass
        self._notes.append(note)

    def history(self, built: Built, training: Any, number: int) -> History:
        """Two more steps, the first so that what it leaves is known; every block of the second."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        gc.freeze()  # what is collected below is of these steps alone
        self._notes = []
        try:
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as logged:
                training.step(number)
                gc.collect()
                stood = standing(built, training)
                self.write(Note())
                self.keeps_history = True
                training.step(number + 1)
        finally:
            self.keeps_history = False
            gc.unfreeze()
            torch.set_num_threads(threads)
        results = logged.profiler.kineto_results
        return _Log(results.experimental_event_tree(), self._notes).history(stood)


@dataclass(slots=True)
class _Event:
    """One change of memory, or a note."""

    time_ns: int
    address: int = 0
    num_bytes: int = 0  # below 0: released
    path: tuple[Any, ...] = ()  # the profiler's events around it, outermost first
    note: Note | None = None


class _Log:
    """What the profiler wrote down."""

    def __init__(self, roots: Iterable[Any], notes: list[Note]) -> None:
        self.events: list[_Event] = []
        self.notes = notes
        names = torch._C._dispatch_get_all_op_names()
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        taken_apart = {name.split(".")[0] for name in names if has(name, "CompositeImplicitAutograd")}
        self.whole = {name.split(".")[0] for name in names} - taken_apart
        for root in roots:
            self._walk(root, ())
        self.events.sort(key=lambda event: event.time_ns)

    def _walk(self, event: Any, path: tuple[Any, ...]) -> None:
        if event.typed[0] == _EventType.Allocation:
            block = event.typed[1]
            self.events.append(_Event(event.start_time_ns, block.ptr, block.alloc_size, path))
        elif event.name.startswith(_NOTE):
            note = self.notes[int(event.name.removeprefix(_NOTE))]
            self.events.append(_Event(event.start_time_ns, note=note))
        for child in event.children:
            self._walk(child, (*path, event))

    def history(self, known: dict[int, tuple[int, str]]) -> History:
        """What stood at the first note, and what came after it."""
        hidden = self._hidden()
        alive = {address: num_bytes for address, (num_bytes, _) in known.items()}
        log: list[Change | Note] = []
        stood: list[tuple[int, int]] = []
        begun = False
        for number, event in enumerate(self.events):
            if event.note is self.notes[0]:
                begun = True
                stood = list(alive.items())
            elif event.note is not None:
                log.append(event.note)
            elif number in hidden:
                continue
            elif begun:
                log.append(Change(event.address, max(event.num_bytes, 0)))
            elif event.num_bytes > 0:
                alive[event.address] = event.num_bytes
            else:
                alive.pop(event.address, None)
        return History(stood, {address: category for address, (_, category) in known.items()}, log)

    def _hidden(self) -> set[int]:
        """Numbers of the events that are left out."""
        begun: dict[int, int] = {}
        hidden: set[int] = set()
        for number, event in enumerate(self.events):
            if event.num_bytes > 0:
                begun[event.address] = number
                if not self._operations(event) and self._is_outside(event):
                    hidden.add(number)
            elif event.num_bytes < 0:
                first = begun.pop(event.address, None)
                if first is not None and (first in hidden or self._is_scratch(self.events[first], event)):
                    hidden.update((first, number))
        return hidden

    def _operations(self, event: _Event) -> list[Any]:
        return [outer for outer in event.path if "::" in outer.name and "autograd::" not in outer.name]

    def _is_outside(self, event: _Event) -> bool:
        """Whether it was made outside of any operation: a number, or a generator's state."""
        return event.num_bytes in (_NUMBER_BYTES, torch.get_rng_state().nbytes)

    def _is_scratch(self, first: _Event, last: _Event) -> bool:
        """Whether a block lives within one operation that the trace sees as one."""
        kernel = next((outer for outer in first.path if outer.name in self.whole), None)
        return kernel is not None and last.time_ns <= kernel.end_time_ns
