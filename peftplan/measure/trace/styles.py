"""Training styles as their trainers write them: what a batch holds, and how a loss comes of the model's output.

The loop around them is the same for all (`training`, `trainer_loop`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from peftplan.measure.trace.job import Job


class Loop(Protocol):
    """What runs a style: the model as its caller sees it, and the model inside adapters."""

    job: Job
    model: Any
    inner: Any

    def forward(self, batch: dict[str, Any]) -> Any:
        """The model's output, under autocast where the run has it."""
        ...

    def reference(self, checkpoints: bool = False) -> AbstractContextManager[Callable[[dict[str, Any]], Any]]:
        """What runs the reference while the block lasts."""
        ...


class Style:
    """Labels go to the model, which computes the loss."""

    drops = True  # whether values are dropped out
    ends_at_head = True  # whether the loss ends as the head's output has its gradient, or with its log-softmax
    classifies = False

    def labels(self, job: Job, ids: torch.Tensor) -> torch.Tensor | None:
        """What the model is asked to predict; None where it computes no loss."""
        return torch.zeros_like(ids) if job.trainer else ids

    def parts(self, job: Job) -> dict[str, torch.Tensor] | None:
        """A batch of another make than ids, mask and labels."""
        return None

    def beside(self, job: Job, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What else stands in the batch."""
        return {}

    def loss(self, loop: Loop, batch: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """The loss, and the output that the loop holds until it drops it."""
        out = loop.forward(batch)
        return out["loss"], out


class NextToken(Style):
    """Cross-entropy over the vocabulary, whichever way it is computed."""

    ends_at_head = False


class Classification(Style):
    """A class for each sequence, or a number where there is one label."""

    classifies = True

    def labels(self, job: Job, ids: torch.Tensor) -> torch.Tensor:
        dtype = torch.float32 if job.num_labels == 1 else torch.long
        return torch.zeros((ids.shape[0],), dtype=dtype, device=ids.device)
