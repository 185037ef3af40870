"""A recording as a memory snapshot that PyTorch's own visualiser opens.

What `torch.cuda.memory._snapshot()` returns after a run with memory history: the segments and blocks at the
end, and every action of the allocator, here of its model. Sizes in the trace are requested bytes, in blocks
whole blocks. Instead of a Python stack, frames say what a storage is: its category and operation, its shape,
its module, and the phase it was made in. `time_us` counts events, as a recording knows no time.

Plain values and pickle protocol 4 only: the visualiser reads the file with an unpickler of its own.

Source: torch-snapshot.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftplan.measure.files import write_whole
from peftplan.measure.trace.analysis import NO_MODULE
from peftplan.measure.trace.recording import Recording
from peftplan.measure.trace.replay import Phase, phases_of
from peftplan.memory.allocator import SMALL_REQUEST, Block, CachingAllocator
from peftplan.memory.expandable import ExpandableAllocator
from peftplan.specs.formats import allocated_bytes

PROTOCOL = 4  # the newest that the visualiser reads
_FIRST_ADDRESS = 0x1000_0000_0000  # addresses of the model begin at 0, which would read as a null pointer
_POOL = (0, 0)
_ROUNDUP_KEYS = 16  # torch lists divisions for the first 16 powers of 2

Frames = list[dict[str, Any]]


def snapshot(recording: Recording, expandable: bool = False) -> dict[str, Any]:
    """The snapshot of a recording: `segments`, `device_traces`, and what torch says beside them."""
    return _Taker(recording, expandable).take()


def write_snapshot(recording: Recording, path: Path, expandable: bool = False, option: str = "--snapshot") -> None:
    """Write a recording's snapshot to a file, whole or not at all."""
    write_whole(path, pickle.dumps(snapshot(recording, expandable), protocol=PROTOCOL), option)


class _Taker:
    """Runs the events through the allocator and notes what it does."""

    def __init__(self, recording: Recording, expandable: bool) -> None:
        self.recording = recording
        self.expandable = expandable
        self.allocator = ExpandableAllocator() if expandable else CachingAllocator()
        self.phases = phases_of(recording)
        self.live: dict[int, Block] = {}
        self.frames_of: dict[int, Frames] = {}  # of living storages, by number
        self.segment_frames: dict[int, Frames] = {}  # by address
        self.interned: dict[tuple[object, ...], Frames] = {}
        self.seen = 0  # of the allocator's history

    def take(self) -> dict[str, Any]:
        trace: list[dict[str, Any]] = []
        for phase in self.phases:
            for event, code in enumerate(self.recording.events[phase.begin : phase.end], phase.begin + 1):
                actions = self._allocate(code - 1, phase) if code > 0 else self._release(-code - 1)
                trace += [{**action, **_beside(event, phase.title)} for action in actions]
        return {
            "segments": self._segments(),
            "device_traces": [trace],
            "allocator_settings": _settings(self.expandable),
            "external_annotations": list(_annotations(self.phases)),
        }

    def _allocate(self, number: int, phase: Phase) -> Iterator[dict[str, Any]]:
        size = self.recording.sizes[number]
        block = self.live[number] = self.allocator.allocate(allocated_bytes(size))
        frames = self.frames_of[number] = self._frames(number, phase)
        history = self.allocator.history
        for action, address, num_bytes in history[self.seen :]:
            self.segment_frames[address] = frames
            # the visualiser stops where storages have categories and none is called unknown
            yield _action(action, address, num_bytes, frames, "unknown")
        self.seen = len(history)
        category = self.recording.text(self.recording.categories, number)
        yield _action("alloc", block.address, size, frames, category)

    def _release(self, number: int) -> Iterator[dict[str, Any]]:
        size = self.recording.sizes[number]
        block, frames = self.live.pop(number), self.frames_of.pop(number)
        address = block.address
        self.allocator.release(block, allocated_bytes(size) <= SMALL_REQUEST)
        yield _action("free_requested", address, size, frames)
        yield _action("free_completed", address, size, frames)

    def _frames(self, number: int, phase: Phase) -> Frames:
        """What a storage is, innermost first as in a stack; storages alike share one list."""
        recording = self.recording
        columns = (recording.categories, recording.operations, recording.dtypes, recording.modules)
        key = (*(column[number] for column in columns), recording.shapes[number], phase.name, phase.step)
        if key not in self.interned:
            category, operation, dtype, module = (recording.text(column, number) for column in columns)
            shape = list(recording.all_shapes[recording.shapes[number]])
            self.interned[key] = [
                _frame(category, operation or category),
                _frame("tensor", f"{shape} {dtype}".rstrip()),
                _frame("module", module or NO_MODULE),
                _frame("phase", phase.title),
            ]
        return self.interned[key]

    def _segments(self) -> list[dict[str, Any]]:
        at = {block.address: number for number, block in self.live.items()}
        segments = []
        for segment in self.allocator.segments():
            blocks = [self._block(block, at.get(block.address)) for block in segment.blocks]
            used = sum(block["size"] for block in blocks if block["state"] == "active_allocated")
            address = segment.blocks[0].address
            segments.append(
                {
                    "device": 0,
                    "address": _FIRST_ADDRESS + address,
                    "total_size": sum(block["size"] for block in blocks),
                    "allocated_size": used,
                    "active_size": used,
                    "requested_size": sum(block["requested_size"] for block in blocks),
                    "stream": 0,
                    "segment_type": "large" if segment.large else "small",
                    "segment_pool_id": _POOL,
                    "is_expandable": self.expandable,
                    "frames": self.segment_frames.get(address, []),
                    "blocks": blocks,
                }
            )
        return segments

    def _block(self, block: Block, number: int | None) -> dict[str, Any]:
        return {
            "address": _FIRST_ADDRESS + block.address,
            "size": block.size,
            "requested_size": 0 if number is None else self.recording.sizes[number],
            "state": "inactive" if number is None else "active_allocated",
            "frames": [] if number is None else self.frames_of[number],
        }


def _action(action: str, address: int, size: int, frames: Frames, category: str = "") -> dict[str, Any]:
    entry = {"action": action, "addr": _FIRST_ADDRESS + address, "size": size, "stream": 0, "frames": frames}
    return {**entry, "category": category} if category else entry


def _beside(event: int, said: str) -> dict[str, Any]:
    """What torch notes with every action, whatever it is."""
    return {"time_us": event, "compile_context": "N/A", "user_metadata": said, "pool_id": _POOL}


def _frame(filename: str, name: str) -> dict[str, Any]:
    """A line of a stack: it is shown as `filename:line:name`."""
    return {"name": name, "filename": filename, "line": 0}


def _annotations(phases: tuple[Phase, ...]) -> Iterator[dict[str, Any]]:
    for phase in phases:
        yield {"name": phase.title, "stage": "START", "device": 0, "time_us": phase.begin}
        yield {"name": phase.title, "stage": "END", "device": 0, "time_us": phase.end}


def _settings(expandable: bool) -> dict[str, Any]:
    """The allocator's settings: torch's defaults, but for the segments."""
    return {
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True" if expandable else "",
        "max_split_size": -1,
        "garbage_collection_threshold": 0.0,
        "expandable_segments": expandable,
        "pinned_num_register_threads": 1,
        "release_lock_on_cudamalloc": False,
        "pinned_use_cuda_host_register": False,
        "graph_capture_record_stream_reuse": False,
        "roundup_power2_divisions": {str(2**power): 0 for power in range(_ROUNDUP_KEYS)},
    }
