"""Runs a job: builds the model on meta, makes it one of fake tensors, trains two steps, records."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from peftplan.errors import BadInput
from peftplan.measure.trace import fake_cuda, flash_package
from peftplan.measure.trace.adapters import adapt, explained
from peftplan.measure.trace.attention import Attention
from peftplan.measure.trace.data_dependent import Answers
from peftplan.measure.trace.job import META_CANNOT_SEE, Job
from peftplan.measure.trace.kernels import cuda_kernels
from peftplan.measure.trace.materialize import materialize, tensors
from peftplan.measure.trace.model import build_model, num_inactive_params
from peftplan.measure.trace.patches import patched
from peftplan.measure.trace.quantized import quantize
from peftplan.measure.trace.recording import ADAPTER, BUFFER, LOAD, PARAMETER, Recording
from peftplan.measure.trace.shapes import wider_shapes
from peftplan.measure.trace.shortcut import Shortcut
from peftplan.measure.trace.sparse import keep_on_host
from peftplan.measure.trace.tracker import Tracker
from peftplan.measure.trace.trainer_loop import TrainerLoop
from peftplan.measure.trace.training import STYLES, Training
from peftplan.memory.overheads import cublas_workspace_bytes

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")

Progress = Callable[[float, str], None]


def prepare(job: Job) -> tuple[Job, list[str]]:
    """The job on the device that this process can pretend, and what is to be said of it."""
    if job.device == "cpu":  # tensors that bitsandbytes makes when it is loaded are none of the run's
        with suppress(ImportError):
            import_module("bitsandbytes.functional")
    if job.device != "cuda":
        return job, []
    try:
        fake_cuda.install()
    except fake_cuda.Unsupported as error:
        return replace(job, device="meta"), [META_CANNOT_SEE.format(reason=error)]
    return job, []


def run(job: Job, progress: Progress) -> Recording:
    """Trace `num_steps` training steps."""
    job, notes = prepare(job)
    with flash_package.installed(job) as package:
        return _run(job, notes, package, progress)


def _run(job: Job, notes: list[str], package: flash_package.FlashPackage, progress: Progress) -> Recording:
    started = time.perf_counter()
    progress(0.0, "building the model")
    model = inner = build_model(*_shape(job))
    num_inactive = num_inactive_params(model)
    if job.quantization is not None:
        notes += quantize(model, job.quantization, job.base_dtype)
    base = {id(parameter) for parameter in model.parameters()}
    num_params = _count(model.parameters()) + getattr(model, "num_packed", 0)
    second = _second(job)
    if job.peft is not None:
        model, said = adapt(model, job)
        notes += said
    if job.trained:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(re.fullmatch(job.trained, name) is not None)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise BadInput("this model has no weights of the kind that is to train; take another method")
    if job.checkpointing:
        _checkpoint(inner, job)
    adapters = {name for name, parameter in model.named_parameters() if id(parameter) not in base}
    attention = Attention(job.compute_capability, job.device)
    kernels = {} if job.device == "cpu" else cuda_kernels(job.compute_capability)
    workspace = 0 if job.device == "cpu" else cublas_workspace_bytes(job.compute_capability)
    kernels |= wider_shapes() | Answers(lambda note: None if note in notes else notes.append(note)).kernels()
    fakes, call = fake_mode(job)
    tracker = Tracker(job.device, kernels, workspace, _StepProgress(job, inner, progress), call)
    package.tracker = tracker
    collecting = gc.isenabled()
    gc.disable()  # cycles would end at moments that depend on this process
    try:
        with patched(job, attention), fakes, tracker:
            materialize(model, lambda t: torch.empty(t.shape, dtype=t.dtype, device=job.device))
            keep_on_host(model)
            tracker.recording.facts.update(_facts(model, adapters, num_params))
            tag_standing(tracker, model, adapters)
            if second is not None:
                materialize(second, lambda t: torch.empty(t.shape, dtype=t.dtype, device=job.device))
                tag_standing(tracker, second, set())
            tracker.mark(LOAD)
            tracker.watch(model)
            built = time.perf_counter()
            tracker.take_cublas_workspace("forward")
            training = (TrainerLoop if job.trainer else Training)(job, model, inner, tracker)
            training.stand_beside(second)
            training.tag_weights = partial(tag_standing, tracker, model, adapters)
            for number in range(job.num_steps):
                tag_standing(tracker, model, adapters)  # a first pass may have put others in place of some
                tracker.settle()
                with explained(job):
                    training.step(number)
    finally:
        if collecting:
            gc.enable()
    ended = time.perf_counter()
    tracker.recording.facts.update(
        libraries={name: found for name in LIBRARIES if (found := _version(name))},
        device=job.device,
        notes=notes,
        num_inactive_params=num_inactive,
        attention_kernels=sorted(attention.kernels),
        attention=getattr(inner.config, "_attn_implementation", job.attention),
        build_s=built - started,
        trace_s=ended - built,
        architecture=type(inner).__name__,
    )
    return tracker.recording


def _shape(job: Job) -> tuple[Any, ...]:
    """What the model is built from."""
    labels = job.num_labels if STYLES[job.style].classifies else None
    return job.config, job.base_dtype, job.attention, job.num_layers, labels


def _second(job: Job) -> Any:
    """A reference that is loaded beside the model; None where there is none."""
    if job.reference != "model":
        return None
    model = build_model(*_shape(job))
    if job.quantization is not None:
        quantize(model, job.quantization, job.base_dtype)
    return model.eval()


def _checkpoint(model: Any, job: Job) -> None:
    try:
        model.gradient_checkpointing_enable({"use_reentrant": job.use_reentrant})
    except ValueError as error:
        raise BadInput(f"transformers refuses checkpointing: {error} Use --no-checkpointing.") from error


def fake_mode(job: Job) -> tuple[AbstractContextManager[Any], Callable[..., Any]]:
    """The mode that makes fake tensors, and what runs an operation on them."""
    if job.device == "meta":
        return nullcontext(), lambda func, args, kwargs: func(*args, **kwargs)
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return mode, Shortcut(mode)


def tag_standing(tracker: Tracker, model: Any, adapters: set[str]) -> None:
    """Name what stands: parameters, adapters, buffers."""
    buffers = {name for name, _ in model.named_buffers()}
    for name, tensor in tensors(model):
        category = BUFFER if name in buffers else ADAPTER if name in adapters else PARAMETER
        tracker.standing(name, tensor, category)


def _facts(model: Any, adapters: set[str], num_params: int) -> dict[str, Any]:
    named = list(model.named_parameters())
    trained = [(name, p) for name, p in named if p.requires_grad]
    return {
        "num_params": num_params,
        "num_trainable_params": sum(p.numel() for _, p in trained),
        "num_adapter_params": sum(p.numel() for name, p in named if name in adapters),
        "adapter_checkpoint_bytes": sum(p.numel() * p.element_size() for name, p in trained if name in adapters),
    }


def _count(parameters: Any) -> int:
    """Weights, packed ones by the number that they stand for."""
    total = 0
    for parameter in parameters:
        state = getattr(parameter, "quant_state", None)
        own = torch.Size(state.shape).numel() if state is not None else parameter.numel()
        total += getattr(parameter, "stands_for", own)
    return total


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


class _StepProgress:
    """How far the run is, from the modules that were entered: forward counts once, backward twice."""

    def __init__(self, job: Job, model: Any, progress: Progress) -> None:
        self.progress = progress
        self.modules = max(1, sum(1 for _ in model.modules()))
        self.num_steps = job.num_steps
        self.entered = 0

    def __call__(self, step: int, phase: str) -> None:
        self.entered += 1
        if self.entered % 64 == 0:
            done = (step + min(0.95, self.entered / (2 * self.modules) % 1)) / self.num_steps
            self.progress(done, f"step {step + 1} of {self.num_steps}: {phase}")
