"""What torch's allocator reserves: a run of two steps, of every block, through a model of the allocator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import count

from peftplan.memory.account import Account
from peftplan.memory.capacity import AllocatorRun
from peftplan.memory.generated import Generated
from peftplan.memory.overheads import cublas_workspace_bytes
from peftplan.memory.unrolled import MicroStep, Section, unroll
from peftplan.memory.update import Event, Script, Update, standing_parameters
from peftplan.optimizers.chosen import chosen
from peftplan.parallel.data_parallel import gradient_buckets
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec

_NUM_STEPS = 2  # optimizer states are there from the end of the first


class Replay(AllocatorRun):
    """A run from the load to the end of the second step; each figure is worked out when it is asked for."""

    def __init__(self, model: ModelSpec, step: StepSpec, account: Account) -> None:
        self.model, self.step, self.generated = model, step, account.generated
        self.peak_allocated_bytes = account.peak_allocated_bytes

    @cached_property
    def sections(self) -> list[Section]:
        """The run's allocations and frees."""
        return list(_Run(self.model, self.step, self.generated).write())


class _Run:
    """Loading, then steps, as the training loop does them, being written down."""

    def __init__(self, model: ModelSpec, step: StepSpec, generated: Generated | None) -> None:
        self.model, self.step, self.generated = model, step, generated
        self.first = unroll(model, replace(step, accumulating=False))
        self.micro_steps = [self.first]
        if step.accumulating:  # every later micro-step is like the second
            self.micro_steps.append(unroll(model, step, self.first.next_key))
        self.opening = self.micro_steps
        if chosen(step).in_backward:
            self.opening = [unroll(model, replace(step, makes_states=True), self.first.next_key)]
        self.keys = count(max(self.micro_steps[-1].next_key, self.opening[-1].next_key))
        self.update = Update(model, step)
        self.workspace = [cublas_workspace_bytes(step.compute_capability)]
        self.batch: list[Event] = []
        self.buckets: list[Event] = []  # those of the first step, where several GPUs share one

    def write(self) -> Iterator[Section]:
        """The whole run."""
        script = Script(self.keys)
        for parameters, run in standing_parameters(self.model):
            sizes = [size for parameter in parameters for _, size in parameter.storages()]
            script.new(sizes * (run.count if run else 1))
        script.new(self.workspace + self.update.masters)
        if self.step.data_parallel:
            self.buckets = script.new(_first_buckets(self.model))
        yield Section(script.events)
        for number in range(_NUM_STEPS):
            yield from self._step(number)

    def _step(self, number: int) -> Iterator[Section]:
        trainer = self.step.trainer
        held: list[Event] = []
        if self.generated is not None:
            before = Script(self.keys)
            self.generated.write(before)
            yield Section(before.events)
        micro_steps = self.micro_steps if number else self.opening
        for micro_step in micro_steps:
            begins = number == 0 and micro_step is micro_steps[0]
            yield Section(self._inputs(micro_step, begins))
            yield from _with_earlier(micro_step, held)
            script = Script(self.keys)
            if begins:
                script.new(self.workspace)  # of the thread that runs backward
            yield Section(script.events)
            yield from micro_step.backward
            held = micro_step.held
            if trainer:
                yield Section([(key, -size) for key, size in held])
                held = []
        script = Script(self.keys)
        script.free(self.update.write(script, self.first.gradients, number == 0))
        script.free(held)
        if not trainer:
            script.free(self.batch)
            self.batch = []
        yield Section(script.events)

    def _inputs(self, micro_step: MicroStep, begins: bool) -> list[Event]:
        """The batch, and then the end of the one before; Trainer has all batches of a step at once."""
        script = Script(self.keys)
        if micro_step in (self.first, self.opening[0]) or not self.step.trainer:
            before, self.batch = self.batch, script.new(size for _, size in micro_step.inputs)
            script.free(before)
        if self.buckets and not begins:  # cut anew, now that it is known in which order gradients are ready
            script.free(self.buckets)
            script.new(gradient_buckets(self.model))
            self.buckets = []
        return script.events


def _first_buckets(model: ModelSpec) -> Iterable[int]:
    """Bytes of the buckets before the first step, one for each type of gradient. Source: torch-ddp."""
    sizes: dict[str, int] = {}
    for _, parameter, times in model.parameters():
        if parameter.edge is not None:
            name = parameter.dtype.short
            sizes[name] = sizes.get(name, 0) + parameter.num_bytes() * times
    return sizes.values()


def _with_earlier(micro_step: MicroStep, held: list[Event]) -> Iterator[Section]:
    """The forward pass, where what the micro-step before held ends as its loss does."""
    for section in micro_step.forward:
        if micro_step.earlier is None or all(key != micro_step.earlier for key, _ in section.events):
            yield section
            continue
        events = []
        for key, size in section.events:
            if key != micro_step.earlier:
                events.append((key, size))
            elif size < 0:
                events += [(one, -born) for one, born in held]
        yield Section(events, section.copies, section.stride)
