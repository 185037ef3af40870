"""What torch's allocator reserves while the length of batches varies: steps of many shapes through one cache.

Blocks that were cut for one length seldom suit the next, so more is reserved than the longest batch alone would
take; `torch.cuda.empty_cache` between steps gives back what is whole. Every step is written out block by block, as
for two steps of one length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from peftplan.memory.fill import Filling
from peftplan.memory.overheads import cublas_workspace_bytes
from peftplan.memory.unrolled import Section, unroll
from peftplan.memory.update import Event, Script, Update, standing_parameters
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec


def reserved_after_steps(
    model: ModelSpec, step: StepSpec, lengths: Sequence[int], emptied_before: Sequence[int] = ()
) -> list[int]:
    """Bytes reserved after each step's optimizer, sequences having `lengths` [tokens] in turn.

    `emptied_before`: the numbers of the steps before which the cache is given back. A plain loop that names its
    output (`step.keep_outputs`) holds it until the next forward pass has returned. Gradients stay until the next
    batch is there, as in a loop that begins a step with `zero_grad`.

    Assumes: one micro-batch a step, and the same number of rows in each.
    Source: torch-allocator.
    """
    loop = _Loop(model, step)
    try:
        found = []
        for number, length in enumerate(lengths):
            if number in emptied_before:
                loop.filling.give_back()
            loop.step_of(length, first=number == 0)
            found.append(loop.filling.reserved_bytes)
        return found
    finally:
        loop.filling.end()


class _Loop:
    """A training loop whose batches differ in length, on a device of its own."""

    def __init__(self, model: ModelSpec, step: StepSpec) -> None:
        self.model, self.step = model, step
        self.filling = Filling()
        self.update = Update(model, step)
        self.keys = count(-1, -1)  # those of a step's own tensors are not below zero
        self.workspace = [cublas_workspace_bytes(step.compute_capability)]
        self.next_key = 0
        self.batch: list[Event] = []
        self.outputs: list[Event] = []
        self.gradients: list[Event] = []
        script = Script(self.keys)
        for parameters, run in standing_parameters(model):
            sizes = [size for parameter in parameters for _, size in parameter.storages()]
            script.new(sizes * (run.count if run else 1))
        script.new(self.workspace + self.update.masters)
        self._play(script)

    def step_of(self, length: int, first: bool) -> None:
        """Forward, backward and update of a batch of sequences of this length."""
        micro_step = unroll(self.model, replace(self.step, seq_len=length), self.next_key)
        self.next_key = micro_step.next_key
        script = Script(self.keys)
        script.free(self.batch)
        self.batch = script.new(size for _, size in micro_step.inputs)
        script.free(self.gradients)
        self._play(script)
        self.filling.play(micro_step.forward)
        script = Script(self.keys)
        script.free(self.outputs)
        if first:
            script.new(self.workspace)  # of the thread that runs backward
        self._play(script)
        self.filling.play(micro_step.backward)
        script = Script(self.keys)
        self.gradients = self.update.write(script, micro_step.gradients, first)
        self.outputs = micro_step.held
        if not self.step.keep_outputs:
            script.free(self.outputs)
            self.outputs = []
        self._play(script)

    def _play(self, script: Script) -> None:
        self.filling.play([Section(script.events)])
