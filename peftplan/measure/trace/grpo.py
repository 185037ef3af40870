"""GRPO's loss as TRL 1.4 computes it: logits of the completion alone, their entropy, clipped ratios.

The completions are given: what generates them is no part of a trace.

Source: trl-grpo, trl-log-probs.
"""

from __future__ import annotations

from typing import Any

import torch

from peftplan.measure.trace.job import Job
from peftplan.measure.trace.preference import entropy_of, log_probs
from peftplan.measure.trace.styles import Loop, Style

_BETA, _REACH = 0.04, 0.2


class Grpo(Style):
    """Groups of completions, each held against the others of its prompt."""

    def labels(self, job: Job, ids: torch.Tensor) -> torch.Tensor | None:
        return None

    def parts(self, job: Job) -> dict[str, torch.Tensor]:
        """A batch: prompts and completions apart, how much better each completion is, and how many tokens count."""
        rows, device = job.micro_batch, job.device
        lengths = {"prompt": job.seq_len - job.completion_len, "completion": job.completion_len}
        made = {}
        for name, length in lengths.items():
            made[f"{name}_ids"] = torch.zeros((rows, length), dtype=torch.long, device=device)
            made[f"{name}_mask"] = torch.ones((rows, length), dtype=torch.long, device=device)
        if job.padding:
            made["prompt_mask"].select(0, 0).narrow(0, 0, 1).zero_()
        made["advantages"] = torch.zeros((rows,), device=device)
        made["num_items"] = torch.ones((), dtype=torch.long, device=device)
        return made

    def loss(self, loop: Loop, batch: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        reference = apart = None
        if loop.job.reference != "none":
            with torch.no_grad(), loop.reference(checkpoints=True) as forward:
                reference, _ = _scored(forward, batch, False)
        mask, advantages = batch["completion_mask"], batch["advantages"].unsqueeze(1)
        logps, entropies = _scored(loop.forward, batch, True)
        before = logps.detach()
        ratio = logps - before
        first = torch.exp(ratio)
        if reference is not None:
            apart = torch.exp(reference - logps) - (reference - logps) - 1
        second = torch.clamp(first, 1 - _REACH, 1 + _REACH)
        whole, clipped = first * advantages, second * advantages
        of_token = -torch.min(whole, clipped)
        if apart is not None:
            of_token = of_token + _BETA * apart
        loss = (of_token * mask).sum() / (batch["num_items"] / 1)
        count = mask.sum().clamp(min=1.0)
        means = [(part * mask).sum() / count for part in (apart, entropies) if part is not None]
        low = (first < 1 - _REACH) & (advantages < 0)
        high = (first > 1 + _REACH) & (advantages > 0)
        either = low | high
        shares = [(part.float() * mask).sum() / count for part in (low, high, either)]
        del means, shares
        return loss, None


def _scored(forward: Any, batch: dict[str, Any], with_entropy: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of the completions' tokens, and perhaps entropies: [rows, tokens]."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    length = batch["completion_ids"].size(1)
    kept = {"input_ids": ids, "attention_mask": mask, "logits_to_keep": length + 1}
    logits = forward(kept).logits
    logits = logits[:, :-1, :]
    logits = logits[:, -length:, :]
    logits.div_(1.0)
    found = [log_probs(logits, ids[:, -length:])]
    entropies = []
    if with_entropy:
        with torch.no_grad():
            entropies.append(entropy_of(logits))
    logps = torch.cat(found, dim=0)
    return logps, torch.cat(entropies, dim=0) if with_entropy else None
