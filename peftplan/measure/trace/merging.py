"""Runs peft's own merge on fake tensors: `merge_and_unload`, or what transformers does to unpack a 4-bit model.

The adapters are those of a loaded model: none trains, and nothing is kept for a gradient.
Source: peft-merge, transformers-dequantize.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from peftplan.errors import BadInput
from peftplan.measure.trace import flash_package
from peftplan.measure.trace.adapters import adapt
from peftplan.measure.trace.attention import Attention
from peftplan.measure.trace.data_dependent import Answers
from peftplan.measure.trace.job import MERGE, UNPACK, Job
from peftplan.measure.trace.kernels import cuda_kernels
from peftplan.measure.trace.materialize import as_packed, materialize
from peftplan.measure.trace.model import build_model
from peftplan.measure.trace.patches import patched
from peftplan.measure.trace.quantized import quantize
from peftplan.measure.trace.recording import LOAD, Recording
from peftplan.measure.trace.runner import fake_mode, prepare, tag_standing
from peftplan.measure.trace.shapes import wider_shapes
from peftplan.measure.trace.tracker import Tracker

DONE = "done"
Progress = Callable[[float, str], None]


def run_merge(job: Job, progress: Progress) -> Recording:
    """The storages of a merge, from the loaded model (mark `loaded`) to its end (mark `done`)."""
    job, notes = prepare(job)
    with flash_package.installed(job):
        return _run(job, notes, progress)


def _run(job: Job, notes: list[str], progress: Progress) -> Recording:
    progress(0.0, "building the model")
    model = build_model(job.config, job.base_dtype, job.attention, job.num_layers)
    if job.quantization is not None:
        notes += quantize(model, job.quantization, job.base_dtype)
    base = {id(parameter) for parameter in model.parameters()}
    if job.after == MERGE:
        model, said = adapt(model, job)
        notes += said
    model.eval()
    model.requires_grad_(False)
    adapters = {name for name, parameter in model.named_parameters() if id(parameter) not in base}
    kernels = {} if job.device == "cpu" else cuda_kernels(job.compute_capability)
    kernels |= wider_shapes() | _Finite(lambda note: None if note in notes else notes.append(note)).kernels()
    fakes, call = fake_mode(job)
    tracker = Tracker(job.device, kernels, 0, lambda *_: None, call)
    collecting = gc.isenabled()
    gc.disable()
    try:
        with patched(job, Attention(job.compute_capability, job.device)), fakes, tracker, _fake_packing():
            materialize(model, lambda t: torch.empty(t.shape, dtype=t.dtype, device=job.device))
            _tell_owners(model)
            tag_standing(tracker, model, adapters)
            tracker.mark(LOAD)
            progress(0.5, "merging")
            model = _unpacked(model, job) if job.after == UNPACK else _merged(model, job)
            tracker.mark(DONE)
    finally:
        if collecting:
            gc.enable()
    tracker.recording.facts.update(notes=notes, device=job.device)
    return tracker.recording


def _tell_owners(model: Any) -> None:
    """Packed weights know the layer that keeps their state too, and bring it a new one."""
    for module in model.modules():
        weight = module._parameters.get("weight")
        if getattr(module, "quant_state", None) is not None and hasattr(weight, "quant_state"):
            weight.module = module


class _Finite(Answers):
    """Values are unknown, and taken as finite: a test that peft makes of weights succeeds."""

    def number(self, tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """item(), bool() and the like."""
        return True if args[0].dtype is torch.bool else super().number(tracker, func, args, kwargs)


def _merged(model: Any, job: Job) -> Any:
    merge = getattr(model, "merge_and_unload", None)
    kind = str((job.peft or {}).get("peft_type", "")).lower()
    if merge is None:
        raise BadInput(f"peft has no merge of {kind} into the base")
    try:
        return merge(safe_merge=job.safe_merge) if job.safe_merge else merge()
    except Exception as error:  # whatever peft says is its verdict
        text = str(error).strip().split("\n")[0] or type(error).__name__
        raise BadInput(f"peft does not merge {kind} into this base: {text}") from error


def _unpacked(model: Any, job: Job) -> Any:
    from transformers.integrations.bitsandbytes import dequantize_and_replace

    return dequantize_and_replace(model, model.config.quantization_config, dtype=model.config.dtype)


@contextmanager
def _fake_packing() -> Iterator[None]:
    """While bitsandbytes' classes of packed weights make fake ones: a class of torch's cannot hold those."""
    try:
        import bitsandbytes as library
    except ImportError:
        yield
        return
    with ExitStack() as stack:
        stack.callback(_forget_addresses)
        FakeTensor.data_ptr = lambda t: t.untyped_storage()._cdata  # peft asks whether ends are tied
        for name, made in (("Params4bit", _Pending4bit), ("Int8Params", _Pending8bit)):
            kind = getattr(library.nn, name)
            stack.callback(setattr, library.nn, name, kind)
            setattr(library.nn, name, _Maker(kind, made))
        eight_bit = library.nn.Int8Params.kind
        stack.callback(setattr, eight_bit, "to", eight_bit.to)
        eight_bit.to = _stay  # modules are sent to where they are
        yield


def _forget_addresses() -> None:
    del FakeTensor.data_ptr


def _stay(weight: Any, *_: Any, **__: Any) -> Any:
    return weight


class _Maker:
    """Stands in a class's place: makes weights, and is what they are instances of."""

    def __init__(self, kind: type, made: type) -> None:
        self.kind, self.made = kind, made

    def __call__(self, data: torch.Tensor, requires_grad: bool = False, **fields: Any) -> Any:
        return self.made(self.kind, data, fields)


class _Pending4bit:
    """A weight that is quantised as it comes to its device, as Params4bit.to does."""

    def __init__(self, kind: type, data: torch.Tensor, fields: dict[str, Any]) -> None:
        self.kind, self.data, self.fields = kind, data, fields

    def to(self, device: torch.device) -> torch.Tensor:
        """Source: bnb-linear4bit (nn/modules.py, Params4bit._quantize)."""
        from bitsandbytes import functional

        dense = self.data.contiguous().to(device)
        how = {
            name: self.fields[name] for name in ("blocksize", "compress_statistics", "quant_type", "quant_storage")
        }
        packed, state = functional.quantize_4bit(dense, **how)
        if self.fields.get("module") is not None:
            self.fields["module"].quant_state = state
        return as_packed(packed, self.kind, {**self.fields, "quant_state": state, "bnb_quantized": True})


class _Pending8bit(_Pending4bit):
    """The same, as Int8Params.to does."""

    def to(self, device: torch.device) -> torch.Tensor:
        """Source: bnb-int8 (nn/modules.py, Int8Params._quantize)."""
        from bitsandbytes import functional

        half = self.data.contiguous().to(device=device, dtype=torch.float16)
        rows, scales, _ = functional.int8_vectorwise_quant(half)
        made: Any = as_packed(rows, self.kind, self.fields)
        made.CB, made.SCB = made.data, scales
        return made
