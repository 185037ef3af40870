"""Losses other than the model's own: in chunks as torchtune writes it, or fused with the head as Liger does.

The fused one is a stand-in: Liger's kernels are written in Triton, which fake tensors cannot run, so its
allocations are made here in its order. Put in place through the model's own `loss_function`.

Source: liger-flce, chunked-cross-entropy.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.nn import functional

from peftplan.errors import BadInput
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.tracker import Tracker
from peftplan.memory.fused_loss import NUM_CHUNKS, rows_of_a_chunk

_IGNORED = -100


def install(job: Job, model: Any, tracker: Tracker) -> None:
    """Give the model the loss that the job asks for."""
    if job.loss == "chunked":
        model.loss_function = _chunked
    elif job.loss == "fused":
        head = model.get_output_embeddings()
        if type(head) is not torch.nn.Linear or head.bias is not None:
            raise BadInput(
                "--loss fused needs a plain output head, and this one carries an adapter or a bias; "
                "leave the head out of --targets and --modules-to-save, or use --loss standard"
            )

        def fused(
            logits: torch.Tensor,
            labels: torch.Tensor,
            *_: Any,
            num_items_in_batch: torch.Tensor | None = None,
            **__: Any,
        ) -> Any:
            padded = functional.pad(labels, (0, 1), value=_IGNORED)
            shifted = padded[..., 1:].contiguous()
            hidden = logits.view(-1, logits.shape[-1])
            loss: Any = _FusedHeadLoss.apply(hidden, head.weight, shifted.view(-1), tracker, job.compute_capability)
            return loss if num_items_in_batch is None else loss / num_items_in_batch

        model.loss_function = fused
        head.forward = lambda hidden: hidden  # the loss multiplies by its weight


def check(job: Job, model: Any) -> None:
    """Raises BadInput where the loss asked for is not made for such a model."""
    name = type(model).__name__
    if job.loss != "standard" and "CausalLM" not in name and "LMHead" not in name:
        family = model.config.model_type
        raise BadInput(
            f"--loss {job.loss} is made for causal language models, and {family} is none; take --loss standard"
        )


def without_logits(model: Any) -> None:
    """Liger's forward hands out a loss and no logits: what the stand-in has in their place goes."""
    if getattr(model.config, "final_logit_softcapping", None):
        model.config.final_logit_softcapping = None  # inside the kernel
    inside = model.forward.__func__

    def forward(itself: Any, *args: Any, **kwargs: Any) -> Any:
        out = inside(itself, *args, **kwargs)
        return type(out)(**{name: value for name, value in out.items() if name != "logits"})

    model.forward = types.MethodType(forward, model)


def _chunked(
    logits: torch.Tensor, labels: torch.Tensor, *_: Any, num_items_in_batch: torch.Tensor | None = None, **__: Any
) -> torch.Tensor:
    padded = functional.pad(labels, (0, 1), value=_IGNORED)
    shifted = padded[..., 1:].contiguous()
    parts = list(logits.chunk(NUM_CHUNKS, dim=1))
    count = (shifted != _IGNORED).sum()
    targets = [part.reshape(-1) for part in shifted.chunk(NUM_CHUNKS, dim=1)]
    flat = [part.reshape(-1, part.shape[-1]) for part in parts]
    total: Any = 0.0
    for part, wanted in zip(flat, targets):
        total += functional.cross_entropy(part.float(), wanted, ignore_index=_IGNORED, reduction="sum")
    loss: torch.Tensor = total / (count if num_items_in_batch is None else num_items_in_batch)
    return loss


class _FusedHeadLoss(torch.autograd.Function):
    """Hidden states and the head's weight in, a scalar out: gradients are made on the way, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        tracker: Tracker,
        capability: tuple[int, int],
    ) -> torch.Tensor:
        tokens, width = hidden.shape
        rows = rows_of_a_chunk(tokens, weight.shape[0], width)
        gradient = torch.zeros_like(hidden)
        weight_gradient = torch.zeros_like(weight) if weight.requires_grad else None
        losses = torch.zeros(tokens, dtype=torch.float32, device=hidden.device)
        counted = labels != _IGNORED
        alike = hidden.dtype == weight.dtype and _autocast_dtype(hidden) in (None, hidden.dtype)
        kept = torch.empty((rows, weight.shape[0]), dtype=hidden.dtype, device=hidden.device) if alike else None
        for start in range(0, tokens, rows):
            part = hidden[start : start + rows]
            if kept is not None:
                logits = kept[: part.shape[0]]
                torch.mm(part, weight.t(), out=logits)
                torch.mm(logits, weight, out=gradient[start : start + rows])
            else:
                logits = part @ weight.t()
                gradient[start : start + rows] = logits @ weight
            if weight_gradient is not None:
                _add_product(weight_gradient, logits, part, capability)
            del logits, part
        del kept
        loss = losses.sum()
        ctx.save_for_backward(gradient.detach(), None if weight_gradient is None else weight_gradient.detach())
        ctx.tracker = tracker
        del counted
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        gradient, weight_gradient = ctx.saved_tensors
        ctx.tracker.end_loss()
        return gradient, weight_gradient, None, None, None


def _autocast_dtype(tensor: torch.Tensor) -> torch.dtype | None:
    kind = tensor.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def _add_product(
    total: torch.Tensor, logits: torch.Tensor, part: torch.Tensor, capability: tuple[int, int]
) -> None:
    """`total += logits.T @ part`: in place with tensor cores from Ampere on, before it through fp32."""
    narrow = logits.dtype in (torch.float16, torch.bfloat16)
    if narrow and capability >= (8, 0) and total.dtype in (torch.float32, logits.dtype):
        part.to(logits.dtype)
    else:
        total += torch.mm(logits.t(), part).float()
