"""Gradients that do not wait for the step: used as they come, when the next one comes, or sent to the host.

Each trained tensor then has an optimizer of its own, which steps inside backward; or the library's hook updates
the tensor before, when the gradient of the next one is there.

Source: torch-in-backward, lomo, torchao-offload.
"""

from __future__ import annotations

from typing import Any

from peftplan.memory.tape import Engine
from peftplan.memory.trained import Trained, trained_tensors
from peftplan.optimizers.chosen import chosen
from peftplan.specs.formats import FP32, UINT8
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Parameter, Tensor

# What a tape's records of such an update count as, and of states that the first step makes.
UPDATE = "update in backward"
STATE = "optimizer state"


class Passing:
    """What a tape does with the gradients of some tensors."""

    def __init__(self, t: Engine, model: ModelSpec, step: StepSpec) -> None:
        self.t, self.optimizer, self.makes_states = t, chosen(step), step.makes_states
        self.rows = {
            id(row.parameter): row
            for row in trained_tensors(model, step)
            if not self.optimizer.keeps_gradient(row.weight)
        }
        self.waiting: list[tuple[Trained, Tensor]] = []

    def takes(self, parameter: Parameter) -> bool:
        """Whether this tensor's gradient goes as it comes."""
        return id(parameter) in self.rows

    def arrive(self, parameter: Parameter, grad: Tensor) -> None:
        """A gradient is there, which the caller drops."""
        row = self.rows[id(parameter)]
        if self.optimizer.row.late:
            self.finish()
            self.waiting.append((row, grad))
        elif self.optimizer.in_backward:
            self._update(row)

    def finish(self) -> None:
        """The gradient that waits is used: a later one has come, or backward has ended."""
        if not self.waiting:
            return
        row, grad = self.waiting.pop()
        t, outer = self.t, self.t.kind
        t.kind = UPDATE
        narrow = row.weight.narrow
        wide = t.new(row.weight.shape, row.weight.numel, FP32, "gradient in fp32") if narrow else grad
        del grad
        self._update(row)
        del wide
        t.kind = outer

    def _update(self, row: Trained) -> None:
        t, outer, weight = self.t, self.t.kind, row.weight
        t.kind = UPDATE
        rule = self.optimizer.rule(weight)
        if self.makes_states:
            t.kind = STATE
            sizes = [*self.optimizer.tables(weight), *(size for _, size in self.optimizer.states(weight))]
            t.states += [t.new((size,), size, UINT8, STATE) for size in sizes]
            t.kind = UPDATE
        held: list[Any] = [t.new(weight.shape, weight.numel, weight.dtype, name) for name in rule.copies]
        held.clear()
        if rule.step is not None:
            rule.step(t, [[weight]], self.optimizer.options, True)
        t.kind = outer
