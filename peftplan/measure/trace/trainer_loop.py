"""Hugging Face's Trainer around a step: what it holds on to, what it does to the output, and clipping.

All micro-batches of a step are fetched, and put on the device, before the first runs; labels are a tensor of
their own. The output is converted to fp32 when the forward pass ends, and dropped before backward. Losses are
sums over the tokens of the whole step; each is handed on detached and added to a running total.

Source: transformers-trainer, accelerate-fp32-outputs.
"""

from __future__ import annotations

import inspect
import types
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from peftplan.measure.trace import optimizers
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.recording import FORWARD, INPUT, STEP
from peftplan.measure.trace.tracker import Tracker
from peftplan.measure.trace.training import Training

_LARGEST_NORM = 1.0  # the default max_grad_norm
_IGNORED = -100


class TrainerLoop(Training):
    """The same model and optimizer in Trainer's hands."""

    def __init__(self, job: Job, model: Any, inner: Any, tracker: Tracker) -> None:
        super().__init__(job, model, inner, tracker)
        self.batches: list[dict[str, Any]] = []
        self.counts_tokens = _takes_more(inner)
        self.tokens: torch.Tensor | None = None
        self.loss: torch.Tensor | None = None
        self.norm: torch.Tensor | None = None
        self.total = torch.zeros((), device=job.device)
        tracker.tag([self.total], INPUT)
        if job.autocast is not None and job.device != "meta":
            self._wrap_forward(self.model)

    def _make_optimizer(self) -> Any:
        rows = self.masters or self.trained
        decayed, rest = _by_decay(self.model, self.trained, rows)
        return self._made([part for part in (decayed, rest) if part], optimizers.embeddings(self.model))

    def step(self, number: int) -> None:
        """One optimizer step of `num_micro_steps` micro-batches."""
        tracker = self.tracker
        tracker.step = number
        tracker.enter_phase(FORWARD)
        self.batches = [self._batch() for _ in range(self.job.num_batches)]
        if self.counts_tokens and "labels" in self.batches[0]:
            self.tokens = sum((self._counted(b["labels"]) != _IGNORED).sum() for b in self.batches) / 1
        for index, batch in enumerate(self.batches[: self.job.num_micro_steps]):
            if index:
                tracker.enter_phase(FORWARD)
            tracker.tag([self.tokens, self.loss], INPUT)
            self.loss = self._micro_step(batch)
            self.total += self.loss
        tracker.enter_phase(STEP)
        self.norm = None
        # a fake gradient's class is not among those for which torch chooses this form itself
        self.norm = torch.nn.utils.clip_grad_norm_(self.trained, _LARGEST_NORM, foreach=True)
        tracker.mark("update")
        self._apply()
        tracker.tag([self.tokens, self.norm], INPUT)  # until the next ones are there
        if number + 1 < self.job.num_steps:
            tracker.tag([self.loss], INPUT)
        tracker.mark("step end")

    def _counted(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels that enter the loss: a causal model moves them by one."""
        return labels[..., 1:] if labels.dim() > 1 else labels

    def _micro_step(self, batch: dict[str, Any]) -> torch.Tensor:
        if self.tokens is not None:
            batch = {**batch, "num_items_in_batch": self.tokens}
        loss, out = self.style.loss(self, batch)
        if self.tokens is not None:
            loss *= 1  # the number of processes
        self._forward_ends()
        del out
        divided = loss / 1  # accelerate's number of accumulation steps, which Trainer counts itself
        self._run_backward(divided)
        self.tracker.end_loss()
        return loss.detach()

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()  # entered by the wrapped forward

    def stand_beside(self, second: Any) -> None:
        super().stand_beside(second)
        if second is not None and self.job.autocast is not None and self.job.device != "meta":
            self._wrap_forward(second)

    def _wrap_forward(self, model: Any) -> None:
        """As accelerate prepares a model: autocast inside, its floating-point outputs converted to fp32 outside."""
        from accelerate.utils.operations import convert_outputs_to_fp32

        inside = model.forward.__func__

        def forward(itself: Any, *args: Any, **kwargs: Any) -> Any:
            with Training._autocast(self):
                return inside(itself, *args, **kwargs)

        model.forward = types.MethodType(forward, model)
        model.forward = types.MethodType(convert_outputs_to_fp32(model.forward.__func__), model)


def _takes_more(model: Any) -> bool:
    """Whether a model's forward takes further words, among them the number of tokens."""
    told = getattr(model, "accepts_loss_kwargs", None)
    if told is not None:
        return bool(told)
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _by_decay(
    model: Any, trained: list[torch.nn.Parameter], rows: list[torch.nn.Parameter]
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """What weight decay applies to, and biases and norms; `rows` stand for `trained`, one by one."""
    from transformers.trainer import Trainer

    names = set(Trainer.get_decay_parameter_names(None, model))
    decayed = {id(parameter) for name, parameter in model.named_parameters() if name in names}
    parts: tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]] = ([], [])
    for parameter, row in zip(trained, rows):
        parts[id(parameter) not in decayed].append(row)
    return parts
