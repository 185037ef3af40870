"""Traced merges as the closed form tells them: levels of a recording, from the load to the end. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from peftplan.measure.trace.job import MERGE, Job
from peftplan.measure.trace.plan import plan_trace
from peftplan.measure.trace.recording import LOAD, Recording
from peftplan.memory.merge import Merge
from peftplan.request import Request
from peftplan.specs.formats import allocated_bytes

if TYPE_CHECKING:
    from peftplan.measure.trace.process import Worker
    from peftplan.merging.ways import Adapted

Progress = Callable[[float, str], None]
_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")


def merge_job(request: Request, packed: bool, host: bool, safe: bool = False, after: str = MERGE) -> Job:
    """What the child process runs for a merge of this request's adapter; nothing is prepared for training."""
    job = plan_trace(request.model_copy(update={"engine": "trace", "checkpointing": False})).job
    return replace(
        job,
        after=after,
        safe_merge=safe,
        device="cpu" if host else "cuda",
        kbit_prepare=False,
        trl_casts=False,
        quantization=job.quantization if packed else None,
    )


def merge_of(recording: Recording, host: bool) -> Merge:
    """Bytes of a traced merge; what passes through the host, and launches, a recording does not tell."""
    begin = recording.mark(LOAD).event
    level, found = 0, Merge(0, 0, "", 0, 0, 0)
    for number, code in enumerate(recording.events):
        if number == begin:
            found.loaded_bytes = found.peak_bytes = level
        storage = abs(code) - 1
        size = recording.sizes[storage]
        room = size if host else allocated_bytes(size)
        level += room if code > 0 else -room
        if number >= begin and level > found.peak_bytes:
            found.peak_bytes, found.peak_layer = level, _layer_of(recording.text(recording.modules, storage))
    if begin >= len(recording.events):
        found.loaded_bytes = found.peak_bytes = level
    found.done_bytes = level
    found.multiplies = any(name.removeprefix("aten::") in _PRODUCTS for name in recording.texts)
    return found


def _layer_of(name: str) -> str:
    """The layer of the base that a name of peft's belongs to: a tensor of an adapter, or the base itself."""
    name, adapter, _ = name.removeprefix("base_model.model.").partition(".default")
    return name.rpartition(".")[0] if adapter else name.partition(".base_layer")[0]


class TracedMerges:
    """Plays the merges of one request by peft itself."""

    def __init__(self, request: Request, worker: Worker, progress: Progress | None) -> None:
        self.request, self.worker, self.progress = request, worker, progress

    def play(self, adapted: Adapted, host: bool, safe: bool) -> Merge:
        """One merge, on fake tensors of the device that it runs on."""
        job = merge_job(self.request, adapted.spec.quant is not None, host, safe)
        return merge_of(self.worker.run(job, self.progress), host)
