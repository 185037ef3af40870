"""The training loop: forward, loss, backward and optimizer step, as users write them.

Labels go to the model, its output is dropped before backward, gradients are set to None after each step.
"""

from __future__ import annotations

import types
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from peftplan.measure.trace import losses, optimizers
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.model import FLOATS
from peftplan.measure.trace.recording import (
    BACKWARD,
    FORWARD,
    GRADIENT,
    INPUT,
    LOSS,
    MASTER,
    OPTIMIZER_STATE,
    STEP,
)
from peftplan.measure.trace.tracker import Tracker

_LARGEST_NORM = 1.0  # Trainer's default max_grad_norm


class Training:
    """A model in fake tensors and what trains it; `step` runs one optimizer step."""

    def __init__(self, job: Job, model: Any, inner: Any, tracker: Tracker) -> None:
        self.job, self.model, self.tracker = job, model, tracker
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.masters: list[torch.nn.Parameter] = []
        if job.master_weights:
            self.masters = [torch.nn.Parameter(p.detach().float()) for p in self.trained]
            tracker.tag(self.masters, MASTER)
        self.optimizer = optimizers.make_optimizer(job.optimizer, self.masters or self.trained)
        self.num_gradients = 0
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(self._accumulated)
        losses.install(job, inner, tracker)
        head = inner.get_output_embeddings()
        if head is not None:
            head.register_forward_hook(self._head_done)
        if job.trainer:
            _convert_outputs(model)

    def step(self, number: int) -> None:
        """One optimizer step of `num_micro_steps` micro-batches."""
        tracker = self.tracker
        tracker.step = number
        for _ in range(self.job.num_micro_steps):
            tracker.enter_phase(FORWARD)
            batch = self._batch()
            loss = self._forward(*batch)
            if tracker.phase == FORWARD:
                tracker.enter_phase(BACKWARD)
            loss.backward()
            tracker.end_loss()
            if self.job.trainer:  # it hands out a detached copy; a plain loop holds on to its variables
                loss = loss.detach()
        tracker.enter_phase(STEP)
        if self.job.trainer:
            torch.nn.utils.clip_grad_norm_(self.trained, _LARGEST_NORM)
        self._apply()
        del batch, loss
        tracker.mark("step end")

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids, which are the labels too, and attention mask: [micro_batch, seq_len]."""
        shape = (self.job.micro_batch, self.job.seq_len)
        ids = torch.zeros(shape, dtype=torch.long, device=self.job.device)
        mask = torch.ones(shape, dtype=torch.long, device=self.job.device)
        self.tracker.tag([ids, mask], INPUT)
        return ids, mask

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        tracker = self.tracker
        with self._autocast():
            out = self.model(input_ids=ids, attention_mask=mask, labels=ids)
            loss: torch.Tensor = out.loss
        tracker.mark("forward end")
        if not tracker.backward_workspace_taken:
            tracker.take_cublas_workspace("backward")
        return loss

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.job.autocast is None or self.job.device == "meta":
            return nullcontext()
        return torch.autocast(self.job.device, dtype=FLOATS[self.job.autocast])

    def _apply(self) -> None:
        if self.masters:
            for master, parameter in zip(self.masters, self.trained):
                if parameter.grad is not None:
                    master.grad = parameter.grad.float()
                    parameter.grad = None
            self.tracker.tag([master.grad for master in self.masters], GRADIENT)
        self.optimizer.step()
        self.tracker.tag(optimizers.states(self.optimizer), OPTIMIZER_STATE)
        if self.masters:
            with torch.no_grad():
                for master, parameter in zip(self.masters, self.trained):
                    parameter.copy_(master)
        self.optimizer.zero_grad(set_to_none=True)

    def _accumulated(self, parameter: torch.Tensor) -> None:
        self.num_gradients += 1
        self.tracker.tag([parameter.grad], GRADIENT)

    def _head_done(self, *_: Any) -> None:
        if self.tracker.phase == FORWARD:
            self.tracker.enter_phase(LOSS)


def _convert_outputs(model: Any) -> None:
    """As accelerate prepares a model for mixed precision: floating-point outputs come out in fp32."""
    from accelerate.utils.operations import convert_outputs_to_fp32

    model.forward = types.MethodType(convert_outputs_to_fp32(model.forward.__func__), model)
