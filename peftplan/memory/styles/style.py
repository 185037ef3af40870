"""What a training style is to the tape: the batch that its loop holds, and the passes that end in a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from peftplan.memory.passes import Passes
from peftplan.memory.player import Player
from peftplan.optimizers.chosen import chosen
from peftplan.specs.formats import FP32, INT64
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Tensor


@dataclass(slots=True)
class Batch:
    """What a loop has on the device while a micro-step runs; `beside` is all that is held for no pass here."""

    ids: Tensor
    labels: Tensor | None
    beside: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Style:
    """One style: `loss` runs its passes and gives the loss and whatever output the loop still holds."""

    name: str
    batch: Callable[[Player, StepSpec], Batch]
    loss: Callable[[Passes, Batch], tuple[Tensor, Any]]
    causal: bool = True  # made for causal language models alone


def whole(t: Player, step: StepSpec, name: str) -> Tensor:
    """Integers for each token of the micro-batch."""
    return t.new((step.num_rows, step.row_len), step.num_rows * step.row_len, INT64, name)


def trainers_numbers(t: Player, step: StepSpec, counts: bool = True) -> list[Tensor]:
    """What Trainer holds beside its batches: none in another loop.

    The running total of losses, the last gradient norm and the loss before this one, which stands last; and the
    number of tokens, by which losses are divided, where it `counts` labels. Source: transformers-trainer.
    """
    if not step.trainer:
        return []
    if counts:
        t.num_tokens = t.new((), 1, FP32, "number of tokens")
    norm = () if chosen(step).in_backward else ("gradient norm",)  # of no gradients it is a number on the host
    return [t.new((), 1, FP32, name) for name in ("total loss", *norm, "earlier loss")]
