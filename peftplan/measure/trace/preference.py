"""Preference losses as TRL 1.4 computes them: whole logits, one token's log-probability after another, metrics.

What is held and in which order follows its trainers, since that is what is traced; values have no part in it.

Source: trl-dpo, trl-log-probs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from peftplan.measure.trace.job import Job
from peftplan.measure.trace.styles import Loop, Style
from peftplan.measure.trace.values import know

_BETA = 0.1
_ENTROPY_ROWS = 128  # logits that are taken at once


class Dpo(Style):
    """A policy against a reference, over pairs of which one row is chosen and one rejected."""

    drops = False

    def labels(self, job: Job, ids: torch.Tensor) -> torch.Tensor | None:
        return None

    def beside(self, job: Job, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Which tokens are of the completion, and log-probabilities that were computed before."""
        found = {"completion_mask": completions(job, ids)}
        if job.reference == "precomputed":
            for name in ("ref_chosen", "ref_rejected"):
                found[name] = torch.zeros((ids.shape[0] // 2,), device=ids.device)
        return found

    def loss(self, loop: Loop, batch: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        out = loop.forward(given)
        logits = out.logits[..., :-1, :].contiguous()
        labels = batch["input_ids"][..., 1:].contiguous()
        mask = batch["completion_mask"][..., 1:].contiguous()
        logps = of_completions(logits, labels, mask)
        chosen, rejected = logps.sum(dim=1).chunk(2, dim=0)
        if loop.job.reference == "precomputed":
            ref_chosen, ref_rejected = batch["ref_chosen"], batch["ref_rejected"]
        else:
            with torch.no_grad(), loop.reference() as forward:
                ref_out = forward(given)
            ref_logits = ref_out.logits[..., :-1, :].contiguous()
            ref_logps = of_completions(ref_logits, labels, mask)
            ref_chosen, ref_rejected = ref_logps.sum(dim=1).chunk(2, dim=0)
        chosen_ratios, rejected_ratios = chosen - ref_chosen, rejected - ref_rejected
        apart = chosen_ratios - rejected_ratios
        losses = -functional.logsigmoid(_BETA * apart)
        loss: Any = 0.0
        loss += losses.mean() * 1.0
        entropy = entropy_of(logits.detach())
        of_all = (entropy * mask).sum(), mask.sum()
        of_all[0] / of_all[1]
        kept_chosen, kept_rejected = logits.detach().chunk(2, dim=0)
        chosen_mask, rejected_mask = mask.chunk(2, dim=0)
        chosen_mean = kept_chosen[chosen_mask.bool()].mean(-1).sum()
        chosen_count = chosen_mask.sum()
        rejected_mean = kept_rejected[rejected_mask.bool()].mean(-1).sum()
        rejected_count = rejected_mask.sum()
        likeliest = kept_chosen.argmax(dim=-1)
        right = (likeliest == labels[: len(labels) // 2]) & chosen_mask.bool()
        right.sum()
        del chosen_mean, chosen_count, rejected_mean, rejected_count
        return loss, None


def completions(job: Job, ids: torch.Tensor) -> torch.Tensor:
    """Ones for the tokens of each row's completion, which stand last."""
    mask = torch.zeros_like(ids)
    with torch._C._DisableTorchDispatch():
        values = (torch.arange(ids.shape[1]) >= ids.shape[1] - job.completion_len).long()
        know(mask, values.expand(ids.shape).contiguous())
    return mask


def of_completions(logits: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log-probability of each label, zero outside the completion: [rows, tokens]."""
    logps = log_probs(logits, labels)
    logps[mask == 0] = 0.0
    return logps


def log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-softmax at the labels, row by row: in fp32 the logit less the log of the sum, else all of it."""
    index = labels.unsqueeze(-1)
    if logits.dtype is torch.float32:
        chosen = torch.gather(logits, dim=-1, index=index)
        sums = torch.stack([torch.logsumexp(row, dim=-1) for row in logits])
        found = chosen - sums.unsqueeze(-1)
    else:
        rows = []
        for row, places in zip(logits, index):
            of_row = functional.log_softmax(row, dim=-1)
            picked = of_row.gather(dim=-1, index=places)
            rows.append(picked)
        found = torch.stack(rows)
    return found.squeeze(-1)


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    """The entropy of each token's distribution, some rows at once."""
    found = []
    for part in logits.reshape(-1, logits.shape[-1]).split(_ENTROPY_ROWS, dim=0):
        logps = functional.log_softmax(part, dim=-1)
        of_part = -(torch.exp(logps) * logps).sum(-1)
        found.append(of_part)
    return torch.cat(found, dim=0).reshape(logits.shape[:-1])


@contextmanager
def adapters_off(loop: Any, checkpoints: bool = False) -> Iterator[Any]:
    """The model that is trained, without its adapters; without checkpoints too, unless they are left on."""
    checkpointed = loop.inner.is_gradient_checkpointing and not checkpoints
    if checkpointed:
        loop.inner.gradient_checkpointing_disable()
    with loop.model.disable_adapter():
        yield loop.forward
    if checkpointed:
        loop.inner.gradient_checkpointing_enable({"use_reentrant": loop.job.use_reentrant})
