"""Measures one run in this process: builds the model, trains a few steps, takes memory, time and power.

First come the warm-up steps; then one whose phases are looked at by the allocator's counters; then the timed
ones, in which nothing is asked; last one whose every allocation is written down. Memory freed by cycles is
collected between steps, not at moments of Python's choosing.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

from peftplan.measure.profile.build import Built, build
from peftplan.measure.profile.cuda_meter import CudaMeter
from peftplan.measure.profile.device import Device, is_out_of_memory
from peftplan.measure.profile.history import recording_of
from peftplan.measure.profile.loop import training_of
from peftplan.measure.profile.plan import found_versions
from peftplan.measure.profile.task import Task
from peftplan.measure.trace import optimizers
from peftplan.measure.trace.account import activations_bytes, breakdown, moments, peak_event, resident
from peftplan.measure.trace.recording import Recording
from peftplan.measure.trace.replay import replay
from peftplan.versions import LIBRARIES

Progress = Callable[[float, str], None]
Answer = dict[str, Any]
_BUILDING = 0.3  # share of the progress bar
COMPLETED, OUT_OF_MEMORY = "completed", "out_of_memory"


class _Run:
    """One run as far as it has come."""

    def __init__(self, task: Task, device: Device, progress: Progress) -> None:
        self.task, self.device, self.progress = task, device, progress
        self.meter = device.meter()
        self.doing = "building the model"
        self.figures: Answer = {}
        self.facts: Answer = {}
        self.notes: list[str] = []
        self.num_done = 0
        self.num_all = task.num_warmup + task.num_steps + 2

    def tell(self) -> None:
        """One more step is done."""
        self.num_done += 1
        self.progress(_BUILDING + (1 - _BUILDING) * self.num_done / self.num_all, self.doing)


def measure(task: Task, device: Device, progress: Progress) -> Answer:
    """What the run took; running out of memory is an outcome."""
    run = _Run(task, device, progress)
    outcome = COMPLETED
    collecting = gc.isenabled()
    gc.disable()
    try:
        _measure(run)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        outcome = OUT_OF_MEMORY
        run.notes.append(f"out of memory while {run.doing}, {run.meter.phase}: {_first_line(error)}")
        run.figures |= _seen_before_the_end(run)
    finally:
        if device.nvml is not None:
            device.nvml.stop()
        if collecting:
            gc.enable()
    return {
        "outcome": outcome,
        "figures": run.figures,
        "facts": run.facts,
        "hardware": device.facts(),
        "libraries": found_versions((*LIBRARIES, "accelerate")),
        "notes": run.notes,
    }


def _measure(run: _Run) -> None:
    task, device, meter = run.task, run.device, run.meter
    started = time.perf_counter()
    built = build(task.job, task.weights, lambda done, label: run.progress(done * _BUILDING, label))
    device.clear()
    run.facts |= {"build_s": time.perf_counter() - started, **_facts(built)}
    run.notes += built.notes
    if isinstance(meter, CudaMeter):
        import torch

        run.facts["loaded_bytes"] = torch.cuda.memory_allocated()
    training = training_of(task.job, built, meter)
    number = 0
    run.doing = "warming up"
    for number in range(task.num_warmup):
        _step(run, training, number)
    run.doing = "looking at memory"
    if isinstance(meter, CudaMeter):
        meter.begin_step()
    _step(run, training, number + 1)
    if isinstance(meter, CudaMeter):
        run.figures["moments"] = {"loaded": run.facts["loaded_bytes"], **meter.moments}
        meter.watching = False
    run.doing = "taking time"
    _take_time(run, training, number + 2)
    _look_at_device(run)
    run.doing = "writing allocations down"
    recording = recording_of(meter.history(built, training, number + 2 + task.num_steps))
    recording.facts["paged_bytes"] = optimizers.paged_bytes(training.optimizer)
    run.tell()
    _account(run, recording)
    if not training.is_finite:
        run.notes.append("the loss is not finite: the values of this run mean nothing, its memory and time do")


def _step(run: _Run, training: Any, number: int) -> None:
    gc.collect()
    training.step(number)
    run.tell()


def _take_time(run: _Run, training: Any, number: int) -> None:
    """Time the measured steps one by one, on the device's own clock."""
    device = run.device
    gc.collect()
    if device.nvml is not None:
        device.nvml.start()
    marks = [device.mark_time()]
    for step in range(run.task.num_steps):
        training.step(number + step)
        marks.append(device.mark_time())
        run.tell()
    run.figures["step_s_each"] = device.seconds(marks)
    if device.nvml is not None:
        run.figures |= device.nvml.stop().averages()


def _look_at_device(run: _Run) -> None:
    meter = run.meter
    if isinstance(meter, CudaMeter):
        peak = meter.look()
        seen = [size for name, size in run.figures["moments"].items() if name not in ("loaded", "forward_end")]
        run.figures["allocated_bytes"] = max(peak, *seen)
        run.figures["reserved_bytes"] = meter.reserved_bytes
    found = run.device.memory()
    how = found.pop("how", "")
    if how:
        run.notes.append(f"process memory: {how}")
    run.figures |= found


def _account(run: _Run, recording: Recording) -> None:
    """What the history says: parts of the peak, state that stays, and on the CPU every moment too."""
    replayed = replay(recording)
    peak_moment, at = peak_event(recording, replayed)
    parts = {node.name: node.bytes for node in breakdown(recording, peak_moment, at).children}
    if isinstance(run.meter, CudaMeter):
        run.facts["history_allocated_bytes"] = replayed.levels[at]
        parts["blocks not split"] = max(0, run.figures["allocated_bytes"] - replayed.levels[at])
    else:
        run.figures["moments"] = moments(recording, replayed)
        run.figures["allocated_bytes"] = replayed.levels[at]
    run.facts["peak_moment"] = peak_moment
    run.figures |= {
        "categories": parts,
        "resident": resident(recording),
        "activations_bytes": activations_bytes(recording),
    }


def _facts(built: Built) -> Answer:
    """Counts of weights; of those in matrix products, each is used once a token."""
    named = list(built.model.named_parameters())
    trained = [(name, p) for name, p in named if p.requires_grad]
    embedding = built.inner.get_input_embeddings().weight
    head = built.inner.get_output_embeddings()
    looked_up = 0 if head is not None and head.weight is embedding else embedding.numel()
    is_base = [p for name, p in trained if name not in built.adapters and p is not embedding]
    return {
        "num_params": built.num_params,
        "num_trainable_params": sum(p.numel() for _, p in trained),
        "num_matmul_params": built.num_params - built.num_inactive_params - looked_up,
        "num_trained_matmul_params": sum(p.numel() for p in is_base if p.dim() > 1)
        + sum(p.numel() for name, p in trained if name in built.adapters),
    }


def _seen_before_the_end(run: _Run) -> Answer:
    """What the allocator had handed out when memory ran out."""
    if not isinstance(run.meter, CudaMeter):
        return {}
    peak = run.meter.look()
    return {"allocated_bytes": peak, "reserved_bytes": run.meter.reserved_bytes, "moments": run.meter.moments}


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return text or type(error).__name__
