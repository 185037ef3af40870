"""The training loop: forward, loss, backward and optimizer step, as users write them.

Labels go to the model, its output is dropped before backward, gradients are set to None after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from peftplan.errors import BadInput
from peftplan.measure.trace import losses, optimizers
from peftplan.measure.trace.grpo import Grpo
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.model import FLOATS
from peftplan.measure.trace.odds import Kto, Orpo
from peftplan.measure.trace.optimizer_makers import LEARNING_RATE, InBackward
from peftplan.measure.trace.preference import Dpo, adapters_off
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
from peftplan.measure.trace.replicas import Buckets
from peftplan.measure.trace.styles import Classification, NextToken, Style
from peftplan.measure.trace.tracker import Tracker
from peftplan.measure.trace.values import count, know_tokens

STYLES: dict[str, Style] = {
    "sft": NextToken(),
    "classification": Classification(),
    "dpo": Dpo(),
    "orpo": Orpo(),
    "kto": Kto(),
    "grpo": Grpo(),
}
# A second loss takes the place of the model's own.
_OF_TWO_LOSSES = ("CPT",)
# Methods that learn for several tasks: each row of a batch says which is its own.
_OF_TASKS = ("MULTITASK_PROMPT_TUNING", "POLY")


class Training:
    """A model in fake tensors and what trains it; `step` runs one optimizer step."""

    # what only fake tensors need: a stand-in for the device while the optimizer runs, and the tokens' values
    stepping = staticmethod(optimizers.stepping)
    knowing = staticmethod(know_tokens)

    def __init__(self, job: Job, model: Any, inner: Any, tracker: Tracker) -> None:
        self.job, self.model, self.inner, self.tracker = job, model, inner, tracker
        self.style = STYLES[job.style]
        self.second: Any = None
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.masters: list[torch.nn.Parameter] = []
        if job.master_weights:
            self.masters = [torch.nn.Parameter(p.detach().float()) for p in self.trained]
            tracker.tag(self.masters, MASTER)
        self.num_gradients = 0
        # says what the weights are, where an optimizer has put others in their place
        self.tag_weights: Callable[[], None] = lambda: None
        self.buckets = Buckets(self.trained, tracker) if job.data_parallel else None
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(self._accumulated)
        self.optimizer = self._make_optimizer()
        if not self.style.drops:
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        losses.check(job, inner)
        losses.install(job, inner, tracker)
        if job.loss == "fused":
            losses.without_logits(inner)
        self.beside = self._beside()
        head = inner.get_output_embeddings() or getattr(inner, "score", None) or getattr(inner, "classifier", None)
        if head is not None:
            head.register_forward_hook(self._head_done)

    def _make_optimizer(self) -> Any:
        return self._made([self.masters or self.trained])

    def _made(self, groups: Sequence[Sequence[torch.nn.Parameter]], wide: Iterable[Any] = ()) -> Any:
        """The job's optimizer over these groups; of modules in `wide` bitsandbytes keeps 32-bit states."""
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        named = list(zip(names, self.masters or self.trained))
        return optimizers.make_for(self.job, self.model, groups, named, wide)

    def step(self, number: int) -> None:
        """One optimizer step of `num_micro_steps` micro-batches."""
        tracker = self.tracker
        tracker.step = number
        for _ in range(self.job.num_micro_steps):
            tracker.enter_phase(FORWARD)
            batch = self._batch()
            loss, out = self.style.loss(self, batch)  # the one before it, and what its graph held, ends here
            self._forward_ends()
            if not self.job.keep_outputs:
                out = None
            self._run_backward(loss)
            tracker.end_loss()
        tracker.enter_phase(STEP)
        tracker.mark("update")
        self._apply()
        del batch, loss, out
        tracker.mark("step end")

    def _batch(self) -> dict[str, torch.Tensor]:
        """Token ids and attention mask, [micro_batch, seq_len], and labels."""
        if self.job.padding_free:
            return self._flattened()
        parts = self.style.parts(self.job)
        if parts is not None:
            self.tracker.tag(parts.values(), INPUT)
            return parts
        shape = (self.job.micro_batch * self.job.rows, self.job.seq_len)
        ids = torch.zeros(shape, dtype=torch.long, device=self.job.device)
        self.knowing(ids)
        mask = torch.ones(shape, dtype=torch.long, device=self.job.device)
        if self.job.padding and mask.numel() > 1:  # by one token, the least that a padded batch has
            mask.select(0, -1).narrow(0, -1, 1).zero_()
        labels, beside = self.style.labels(self.job, ids), self.style.beside(self.job, ids)
        self.tracker.tag([ids, mask, labels, *beside.values()], INPUT)
        batch = {"input_ids": ids, "attention_mask": mask, **beside}
        return batch if labels is None else {**batch, "labels": labels}

    def _flattened(self) -> dict[str, torch.Tensor]:
        """The same tokens as one row, with positions that begin anew, and no mask."""
        job = self.job
        ids = torch.zeros((1, job.micro_batch * job.seq_len), dtype=torch.long, device=job.device)
        self.knowing(ids)
        places = torch.zeros_like(ids)
        count(places, job.seq_len)
        labels = self.style.labels(job, ids)
        self.tracker.tag([ids, places, labels], INPUT)
        return {"input_ids": ids, "position_ids": places, "labels": labels}

    def _beside(self) -> dict[str, torch.Tensor]:
        """What a method wants to be told beside the batch."""
        if self.job.peft is None or str(self.job.peft["peft_type"]).upper() not in _OF_TASKS:
            return {}
        task_ids = torch.zeros((self.job.micro_batch,), dtype=torch.long, device=self.job.device)
        self.tracker.tag([task_ids], INPUT)
        return {"task_ids": task_ids}

    def forward(self, batch: dict[str, Any]) -> Any:
        """The model's output."""
        if self.buckets is not None and torch.is_grad_enabled():
            self.buckets.before_forward()
        try:
            with self._autocast():
                return self.model(**batch, **self.beside)
        except StopIteration as error:
            raise BadInput(
                "--attention flash: transformers casts fp32 inputs to the type of the attention's first nn.Linear, "
                "and this model's has none; use a 16-bit base or --precision bf16-mixed, or take --attention sdpa"
            ) from error

    def reference(self, checkpoints: bool = False) -> AbstractContextManager[Any]:
        """What runs the reference, for as long as the block lasts."""
        return adapters_off(self, checkpoints) if self.second is None else nullcontext(self._second)

    def stand_beside(self, second: Any) -> None:
        """Take a reference that stands beside the model."""
        self.second = second

    def _second(self, batch: dict[str, Any]) -> Any:
        with self._autocast():
            return self.second(**batch)

    def _forward_ends(self) -> None:
        """Forward has given its output."""
        tracker = self.tracker
        if self.job.peft is not None and str(self.job.peft["peft_type"]).upper() in _OF_TWO_LOSSES:
            tracker.drop_loss()
        tracker.mark("forward end")
        if not tracker.backward_workspace_taken:
            tracker.take_cublas_workspace("backward")
        if tracker.phase == FORWARD:
            tracker.enter_phase(BACKWARD)

    def _run_backward(self, loss: torch.Tensor) -> None:
        """From the loss to the last gradient; LOMO's runs it itself, to use that one too."""
        with self.stepping():
            own = getattr(self.optimizer, "fused_backward", None)
            loss.backward() if own is None else own(loss, LEARNING_RATE)
        if isinstance(self.optimizer, InBackward):
            self.tag_weights()

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
        with self.stepping():
            if not hasattr(self.optimizer, "fused_backward"):  # what runs backward has stepped already
                self.optimizer.step()
        self.tracker.tag(optimizers.states(self.optimizer), OPTIMIZER_STATE)
        self.tracker.recording.facts["paged_bytes"] = optimizers.paged_bytes(self.optimizer)
        self.tracker.recording.facts["host_bytes"] = optimizers.host_bytes(self.optimizer)
        if self.masters:
            with torch.no_grad():
                for master, parameter in zip(self.masters, self.trained):
                    parameter.copy_(master)
        self.optimizer.zero_grad(set_to_none=True)

    def _accumulated(self, parameter: torch.Tensor) -> None:
        self.num_gradients += 1
        self.tracker.tag([parameter.grad], GRADIENT)

    def _head_done(self, _: Any, __: Any, out: Any) -> None:
        if self.tracker.phase == FORWARD and torch.is_grad_enabled():
            self.tracker.enter_phase(LOSS)
            if self.style.ends_at_head:
                self.tracker.loss_by_softmax = False
                out.register_hook(lambda _: self.tracker.end_loss())
