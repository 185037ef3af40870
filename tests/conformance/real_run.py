"""A tiny model trained for real on the CPU, every allocation logged by torch's profiler.

The curve leaves out what no fake tensor can show, each block by its mechanism:

* scratch: what one kernel takes and gives back (copies that an elementwise kernel of the CPU makes of
  operands of another type, oneDNN's and attention's buffers) - allocated inside an operation that the
  trace sees as one, and freed before that ends;
* random states: a checkpoint keeps the CPU generator's, and its recomputation saves the current one;
* numbers: a Python number that meets a tensor becomes one of 8 bytes, outside of any operation. Both are
  CPU memory in a run on a GPU too.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from curves import BACKWARD_END, FORWARD_END, NUMBER_BYTES, STEP_END, Curve, stages
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

from peftplan.measure.trace import losses, optimizers, runner
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.materialize import materialize
from peftplan.measure.trace.model import FLOATS
from peftplan.measure.trace.tracker import Tracker

COLLECTED = "garbage collected"
_MARK, _BEGIN, _SUM = "peftplan: ", "begin", "sum in place"
_ENGINE = "autograd::engine::evaluate_function"
_CAST_BEFORE = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")  # whose operands autocast converts


def measured(job: Job, hooked: bool = False) -> Curve:
    """The second step of a real run; the first is logged too, so that what it leaves is known when it ends.

    `hooked`: with the hooks on modules and parameters that the trace sets.
    """
    model = real_model(job)
    loop = _Loop(job, model)
    if hooked:
        Tracker("cpu", {}, 0, lambda *_: None, lambda *_: None).watch(model)
        for parameter in loop.trained:
            parameter.register_post_accumulate_grad_hook(lambda _: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    collecting = gc.isenabled()
    gc.disable()
    gc.freeze()  # what is collected below is of these steps alone
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as logged:
            loop.step()
            gc.collect()
            _mark(_BEGIN)
            loop.step()
            gc.collect()
            _mark(COLLECTED)
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()
    return _Log(logged.profiler.kineto_results.experimental_event_tree()).curve()


class _BuiltError(Exception):
    """Carries the model out of a trace that has just built it."""


def real_model(job: Job) -> Any:
    """The model that the trace's own code builds on meta, made one of real tensors with random values."""

    def stop(model: Any, make: Any) -> None:
        raise _BuiltError(model)

    kept = runner.materialize
    runner.materialize = stop
    try:
        runner.run(job, lambda *_: None)
        raise AssertionError("the trace materialises no model")
    except _BuiltError as built:
        model = built.args[0]
    finally:
        runner.materialize = kept
    torch.manual_seed(0)
    materialize(model, _random)
    losses.install(job, model.get_base_model() if job.peft else model, SimpleNamespace(end_loss=lambda: None))
    return model


def _random(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    return torch.randn(tensor.shape).mul_(0.02).to(tensor.dtype)


class _Loop:
    """A training loop as users write it."""

    def __init__(self, job: Job, model: Any) -> None:
        self.job, self.model = job, model
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.masters = [torch.nn.Parameter(p.detach().float()) for p in self.trained if job.master_weights]
        self.optimizer = optimizers.make_optimizer(job.optimizer, [self.masters or self.trained])

    def step(self) -> None:
        for _ in range(self.job.num_micro_steps):
            batch = self._batch()
            with self._autocast():
                out = self.model(**batch)
            loss = out.loss
            if self.job.loss == "fused":
                out = None  # as Liger's, it carries no logits
            _mark(FORWARD_END)
            if not self.job.keep_outputs:
                out = None
            loss.backward()
        _mark(BACKWARD_END)
        for master, parameter in zip(self.masters, self.trained):
            master.grad, parameter.grad = parameter.grad.float(), None
        self.optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.trained):
                parameter.copy_(master)
        self.optimizer.zero_grad(set_to_none=True)
        del batch, out, loss
        _mark(STEP_END)

    def _batch(self) -> dict[str, torch.Tensor]:
        shape = (self.job.micro_batch, self.job.seq_len)
        ids = torch.zeros(shape, dtype=torch.long)
        mask = torch.ones(shape, dtype=torch.long)
        if self.job.padding:
            mask[:, -1] = 0
        return {"input_ids": ids, "attention_mask": mask, "labels": ids}

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.job.autocast is None:
            return nullcontext()
        return torch.autocast("cpu", dtype=FLOATS[self.job.autocast])


def _mark(name: str) -> None:
    with record_function(_MARK + name):
        pass


@dataclass
class _Event:
    """One change of memory or, without bytes, a mark."""

    time_ns: int
    pointer: int = 0
    num_bytes: int = 0
    path: tuple[Any, ...] = ()  # the profiler's events around it, outermost first
    mark: str = ""


class _Log:
    """What the profiler wrote down."""

    def __init__(self, roots: Sequence[Any]) -> None:
        self.events: list[_Event] = []
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
        elif event.name.startswith(_MARK):
            self.events.append(_Event(event.start_time_ns, mark=event.name.removeprefix(_MARK)))
        elif event.name == "aten::add_" and path and path[-1].name.startswith(_ENGINE):
            self.events.append(_Event(event.start_time_ns, mark=_SUM))
        for child in event.children:
            self._walk(child, (*path, event))

    def curve(self) -> Curve:
        """Without what fakes cannot show."""
        hidden = self._hidden()
        count: Counter[str] = Counter()
        changes: list[int | str] = []
        curve = Curve([], 0)
        for event in self.events:
            kind = hidden.get(id(event))
            if event.mark == _BEGIN:
                changes.clear()
                curve = Curve([], 0)
                continue
            if kind:
                count[kind] += 1 if event.num_bytes > 0 else -1
            elif event.num_bytes or event.mark != _SUM:
                changes.append(event.mark or event.num_bytes)
            if event.mark == _SUM:
                curve.sums_in_place += 1
            elif event.mark:
                curve.random_states.append(count["random state"])
                curve.numbers.append(count["number"])
        *curve.stages, collected = stages(changes)
        curve.garbage_bytes = curve.stages[-1].end_bytes - collected.end_bytes
        del curve.random_states[-1], curve.numbers[-1]
        return curve

    def _hidden(self) -> dict[int, str]:
        """By id, the events that a trace does not have, and why."""
        hidden: dict[int, str] = {}
        begun: dict[int, _Event] = {}
        for event in self.events:
            if event.num_bytes > 0:
                begun[event.pointer] = event
                if kind := self._outside(event):
                    hidden[id(event)] = kind
            elif event.num_bytes < 0:
                first = begun.pop(event.pointer, None)
                kernel = self._kernel(first) if first is not None else None
                if first is None:
                    hidden[id(event)] = "garbage of an earlier test"
                elif id(first) in hidden:
                    hidden[id(event)] = hidden[id(first)]
                elif kernel is not None and event.time_ns <= kernel.end_time_ns:
                    hidden[id(first)] = hidden[id(event)] = "scratch"
        return hidden

    def _kernel(self, event: _Event) -> Any:
        """The operation around it that the trace sees as one; None outside of any."""
        whole = [outer for outer in event.path if outer.name in self.whole]
        first, second = ([outer.name for outer in whole] + ["", ""])[:2]
        copied = first.endswith("_") and second == "aten::clone"  # autograd's, before an operand is changed
        if copied or (first in _CAST_BEFORE and second == "aten::_to_copy"):
            return whole[1]
        return whole[0] if whole else None

    def _outside(self, event: _Event) -> str:
        """What it is if it was allocated outside of any operation."""
        if any("::" in outer.name and "autograd::" not in outer.name for outer in event.path):
            return ""
        if event.num_bytes == NUMBER_BYTES:
            return "number"
        return "random state" if event.num_bytes == torch.get_rng_state().nbytes else ""
