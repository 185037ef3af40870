"""Memory of a CUDA device: the allocator's own counters by phase, and its history of one step.

Counters are read where phases meet, without waiting for the device: the allocator counts on the host. In the
history a note is a block of a size that nobody asks for, made and given back at once, since the allocator
keeps the order of requests and nothing else that all threads share.

Source: torch-allocator (CUDACachingAllocator.cpp).
"""

from __future__ import annotations

from typing import Any

import torch

from peftplan.measure.profile.build import Built
from peftplan.measure.profile.history import Change, History, Note
from peftplan.measure.profile.meter import Meter, standing
from peftplan.measure.trace.recording import FORWARD, WORKSPACE
from peftplan.measure.trace.replay import FORWARD_END
from peftplan.memory.overheads import cublas_workspace_bytes
from peftplan.specs.formats import allocated_bytes

_FIRST_NOTE_BYTES = 10_001  # notes are of this and the following odd sizes
_DEVICE = "cuda"
_ALLOC, _FREE = "alloc", "free_requested"


class CudaMeter(Meter):
    """Reads the allocator of one device."""

    def __init__(self, compute_capability: tuple[int, int]) -> None:
        super().__init__()
        self.workspace_bytes = cublas_workspace_bytes(compute_capability)
        self.moments: dict[str, int] = {}  # the most allocated by phase, and what is at the end of forward
        self.reserved_bytes = 0
        self.watching = True
        self.unsplit_bytes = 0
        self._notes: list[Note] = []

    # ---- counters

    def begin_step(self) -> None:
        """Forget the peaks of the steps before."""
        self.moments = {}
        self.phase = ""
        self.look()

    def look(self) -> int:
        """The most allocated since the last look; what was reserved meanwhile is kept."""
        counters = torch.cuda.memory_stats_as_nested_dict()
        self.reserved_bytes = max(self.reserved_bytes, int(counters["reserved_bytes"]["all"]["peak"]))
        torch.cuda.reset_peak_memory_stats()
        return int(counters["allocated_bytes"]["all"]["peak"])

    def mark(self, name: str) -> None:
        if name == FORWARD_END and self.watching:
            self.moments["forward_end"] = torch.cuda.memory_allocated()
        elif name == "step end":
            self._phase_ends()
            self.phase = ""
        super().mark(name)

    def _phase_ends(self) -> None:
        if self.watching and self.phase:
            self.moments[self.phase] = max(self.moments.get(self.phase, 0), self.look())
        elif self.watching and not self.phase:
            self.look()

    # ---- history

    def write(self, note: Note) -> None:
        torch.empty(_FIRST_NOTE_BYTES + 2 * len(self._notes), dtype=torch.uint8, device=_DEVICE)
        self._notes.append(note)

    def history(self, built: Built, training: Any, number: int) -> History:
        """One more step with every request written down."""
        torch.cuda.synchronize()
        named = {address: category for address, (_, category) in standing(built, training).items()}
        before = _active_blocks(torch.cuda.memory._snapshot())
        self.unsplit_bytes = sum(size - allocated_bytes(requested) for _, requested, size in before)
        for address, requested, _ in before:
            if requested == self.workspace_bytes:
                named.setdefault(address, WORKSPACE)
        self._notes = []
        self.keeps_history, self.watching = True, False
        torch.cuda.memory._record_memory_history(enabled="all", context=None, stacks="python")
        try:
            training.step(number)
            entries = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)
            self.keeps_history, self.watching = False, True
        return History([block[:2] for block in before], named, read_entries(entries, self._notes))


def _active_blocks(snapshot: dict[str, Any]) -> list[tuple[int, int, int]]:
    """(address, requested bytes, bytes of the block) of all that is in use."""
    found = []
    for segment in snapshot["segments"]:
        address = segment["address"]
        for block in segment["blocks"]:
            if block["state"] == "active_allocated":
                found.append((block.get("address", address), block["requested_size"], block["size"]))
            address += block["size"]
    return found


def read_entries(entries: list[dict[str, Any]], notes: list[Note]) -> list[Change | Note]:
    """The allocator's entries as changes, with each note in its place."""
    log: list[Change | Note] = []
    begun = False
    waiting: int | None = None  # address of a note's own block
    told = 0
    for entry in entries:
        if entry["action"] == _ALLOC:
            if told < len(notes) and entry["size"] == _FIRST_NOTE_BYTES + 2 * told:
                begun = begun or notes[told].moment == FORWARD
                log.append(notes[told])
                waiting, told = entry["addr"], told + 1
            elif begun:
                log.append(Change(entry["addr"], entry["size"]))
        elif entry["action"] == _FREE and begun:
            if entry["addr"] == waiting:
                waiting = None
            else:
                log.append(Change(entry["addr"], 0))
    return log
