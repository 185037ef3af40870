"""Losses other than the model's own: in chunks as torchtune writes it, or fused with the head as Liger does.

The fused one is a stand-in: Liger's kernels are written in Triton, which fake tensors cannot run, so its
allocations are made here in its order. Put in place through the model's own `loss_function`.

Source: fused-cross-entropy, chunked-cross-entropy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from peftplan.errors import BadInput
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.tracker import Tracker
from peftplan.memory.fused_loss import NUM_CHUNKS

_IGNORED = -100


def install(job: Job, model: Any, tracker: Tracker) -> None:
    """Give the model the loss that the job asks for."""
    if job.loss == "chunked":
        model.loss_function = _chunked
    elif job.loss == "fused":
        head = model.get_output_embeddings()
        if type(head) is not torch.nn.Linear or head.bias is not None:
            raise BadInput("--loss fused needs a plain output head without adapter and bias; use --loss standard")

        def fused(logits: torch.Tensor, labels: torch.Tensor, **_: Any) -> Any:
            return _FusedHeadLoss.apply(logits, head.weight, _shifted(labels), tracker)

        model.loss_function = fused
        head.forward = lambda hidden: hidden  # the loss multiplies by its weight


def _shifted(labels: torch.Tensor) -> torch.Tensor:
    return functional.pad(labels, (0, 1), value=_IGNORED)[..., 1:]


def _chunked(logits: torch.Tensor, labels: torch.Tensor, **_: Any) -> torch.Tensor:
    shifted = _shifted(labels)
    pieces = min(NUM_CHUNKS, labels.shape[1])
    total: Any = 0.0
    for part, wanted in zip(logits.chunk(pieces, dim=1), shifted.chunk(pieces, dim=1)):
        flat = part.reshape(-1, part.shape[-1])
        total = total + functional.cross_entropy(
            flat.float(), wanted.reshape(-1), ignore_index=_IGNORED, reduction="sum"
        )
    return total / labels.numel()


class _FusedHeadLoss(torch.autograd.Function):
    """Hidden states and the head's weight in, a scalar out: gradients are made on the way, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, tracker: Tracker
    ) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        tokens, width = flat.shape
        vocab = weight.shape[0]
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else flat.dtype
        gradient = torch.zeros_like(flat)
        weight_gradient = torch.zeros_like(weight) if weight.requires_grad else None
        losses = torch.zeros(tokens, dtype=torch.float32, device=flat.device)
        chunks = -(-vocab // width)
        rows = min(1 << (-(-tokens // chunks) - 1).bit_length(), tokens)
        for start in range(0, tokens, rows):
            part = flat[start : start + rows]
            logits = part.to(dtype) @ weight.to(dtype).t()
            if dtype is flat.dtype:
                torch.mm(logits, weight, out=gradient[start : start + rows])
            else:
                gradient[start : start + rows] = logits @ weight.to(dtype)
            if weight_gradient is not None:
                weight_gradient += logits.t() @ part.to(dtype)
        ctx.save_for_backward(gradient.detach(), weight_gradient)
        ctx.shape, ctx.tracker = hidden.shape, tracker
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        gradient, weight_gradient = ctx.saved_tensors
        ctx.tracker.end_loss()
        return gradient.mul_(grad).view(ctx.shape), weight_gradient, None, None
