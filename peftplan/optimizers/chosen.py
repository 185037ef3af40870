"""An optimizer as a run has it: its row, its options, and whether it updates during backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from peftplan.optimizers.row import Optimizer, OptimizerOptions, States, Weight
from peftplan.specs.run import StepSpec


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the rest of a step asks of its optimizer, tensor by tensor."""

    row: Optimizer
    options: OptimizerOptions
    in_backward: bool

    def rule(self, weight: Weight) -> Optimizer:
        """The optimizer that updates a tensor: the one chosen, or the one beside it."""
        row = self.row
        return row if row.beside is None or row.takes(weight, self.options) else row.beside

    @property
    def rules(self) -> tuple[Optimizer, ...]:
        """Both, in the order in which they step."""
        return (self.row,) if self.row.beside is None else (self.row, self.row.beside)

    def states(self, weight: Weight) -> States:
        """What is kept on the device for a tensor, tensor by tensor."""
        return self.rule(weight).states(weight, self.options)

    def paged(self, weight: Weight) -> States:
        """What is kept in managed memory."""
        return self.rule(weight).paged(weight, self.options)

    def host(self, weight: Weight) -> States:
        """What is kept in the host's memory."""
        return self.rule(weight).host(weight, self.options)

    def tables(self, weight: Weight) -> tuple[int, ...]:
        """Bytes of the tensors that the states of this one share with others."""
        return self.rule(weight).tables(weight, self.options)

    def tables_of(self, weights: Sequence[tuple[Weight, int]]) -> list[tuple[int, int]]:
        """All of these, and how often each stands there: once, or for each tensor that has its own optimizer."""
        made = [(size, count) for weight, count in weights for size in self.tables(weight)]
        if self.in_backward:
            return made
        first = next((self.tables(weight) for weight, _ in weights if self.tables(weight)), ())
        return [(size, 1) for size in first]

    def group(self, weight: Weight, decayed: bool) -> int:
        """Which group a tensor is in: those that decay come first, unless the optimizer has groups of its own."""
        own = self.row.group
        return int(not decayed) if own is None else own(weight, self.options)

    def transfers(self, weight: Weight) -> tuple[int, int]:
        """Bytes that a step sends to the host, and those that come back."""
        return self.rule(weight).transfers(weight, self.options)

    def keeps_gradient(self, weight: Weight) -> bool:
        """Whether a tensor's gradient is there when the optimizer steps."""
        return not self.in_backward and self.rule(weight).keeps_gradient(weight, self.options)


@lru_cache(maxsize=256)
def _bound(name: str, options: OptimizerOptions | None, in_backward: bool) -> Chosen:
    from peftplan.optimizers import OPTIMIZERS

    row = OPTIMIZERS[name]
    return Chosen(row, options or row.options(), in_backward or row.in_backward)


def chosen(step: StepSpec) -> Chosen:
    """The optimizer of a step."""
    return _bound(step.optimizer, step.optimizer_options, step.optimizer_in_backward)


def default_options(row: Optimizer, config: Mapping[str, Any], trainer: bool) -> dict[str, Any]:
    """Options that nobody states and that are not the library's own: from the model's config, or Trainer's."""
    return {**row.of_config(config), **((row.of_trainer or {}) if trainer else {})}
