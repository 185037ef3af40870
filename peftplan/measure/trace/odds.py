"""ORPO and KTO as TRL 1.4 computes them: odds within pairs, and single completions against a baseline.

Source: trl-orpo, trl-kto, trl-log-probs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from peftplan.measure.trace.job import Job
from peftplan.measure.trace.preference import Dpo, log_probs
from peftplan.measure.trace.styles import Loop

_BETA = 0.1
_IGNORED = -100
_TURN = -0.6931471805599453  # the negative of log 2


class Orpo(Dpo):
    """The chosen rows' cross-entropy, and the odds of the chosen rows against those of the rejected ones."""

    def beside(self, job: Job, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Labels of the completions; those of prompts are left out of the odds."""
        return {"completion_labels": torch.zeros_like(ids)}

    def loss(self, loop: Loop, batch: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        pairs = given["input_ids"].shape[0] // 2
        out = loop.forward(given)
        logits = out.logits
        whole = given["input_ids"].clone()
        whole = torch.where(given["attention_mask"] == 1, whole, _IGNORED)
        entropy = _next_token(logits[:pairs], whole[:pairs])
        logps = _of_labels(logits, batch["completion_labels"], average=True)
        chosen, rejected = logps[:pairs], logps[pairs:]
        kept_chosen, kept_rejected = logits[:pairs, :-1, :], logits[pairs:, :-1, :]
        first, second = chosen.float(), rejected.float()
        odds = (first - second) - (_log1mexp(first) - _log1mexp(second))
        ratio = functional.logsigmoid(odds)
        losses = _BETA * ratio
        rewards = [_BETA * part.detach() for part in (first, second)]
        of_ratio, of_odds = torch.mean(ratio), torch.mean(odds)
        loss = entropy - losses.mean()
        held = [(rewards[0] > rewards[1]).float()]
        held += [part.mean() for part in (*rewards, held[0], rewards[0] - rewards[1])]
        held += [rejected.detach().mean(), chosen.detach().mean()]
        held += [kept_rejected.detach().mean(), kept_chosen.detach().mean()]
        del of_ratio, of_odds, held
        return loss, None


class Kto(Dpo):
    """Single completions, each wanted or not; other prompts' completions give the baseline."""

    def beside(self, job: Job, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Labels of the completions, a second batch of other prompts' completions, a reference's numbers."""
        found = {"completion_labels": torch.zeros_like(ids)}
        found["KL_input_ids"], found["KL_attention_mask"] = torch.zeros_like(ids), torch.ones_like(ids)
        found["KL_labels"] = torch.zeros_like(ids)
        if job.reference == "precomputed":
            for name in ("ref", "ref_KL"):
                found[name] = torch.zeros((ids.shape[0],), device=ids.device)
        return found

    def loss(self, loop: Loop, batch: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        rows = batch["input_ids"].shape[0]
        wanted = torch.arange(rows) % 2 == 0
        num_wanted = wanted.sum().to(batch["input_ids"].device)
        num_unwanted = (rows - num_wanted).to(batch["input_ids"].device)
        chosen, rejected, kept_chosen, kept_rejected, baseline = self._passes(loop, loop.forward, batch, wanted)
        if loop.job.reference == "precomputed":
            places = [torch.nonzero(part.to(batch["ref"].device)).view(-1) for part in (wanted, ~wanted)]
            ref_chosen, ref_rejected = (batch["ref"].index_select(0, place) for place in places)
            ref_baseline = batch["ref_KL"]
        else:
            with torch.no_grad(), loop.reference() as forward:
                ref_chosen, ref_rejected, _, _, ref_baseline = self._passes(loop, forward, batch, wanted)
        apart = (baseline - ref_baseline).mean().detach()
        apart = apart.mean().clamp(min=0)
        chosen_ratios = chosen - ref_chosen
        chosen_losses = 1 - torch.sigmoid(_BETA * (chosen_ratios - apart))
        chosen_rewards = _BETA * chosen_ratios.detach()
        rejected_ratios = rejected - ref_rejected
        rejected_losses = 1 - torch.sigmoid(_BETA * (apart - rejected_ratios))
        rejected_rewards = _BETA * rejected_ratios.detach()
        losses = torch.cat((1.0 * chosen_losses, 1.0 * rejected_losses), 0)
        for part in (chosen_rewards, chosen, kept_chosen, rejected_rewards, rejected, kept_rejected):
            part.nansum()
        del num_wanted, num_unwanted
        return losses.nanmean(), None

    @staticmethod
    def _passes(loop: Loop, forward: Any, batch: dict[str, Any], wanted: torch.Tensor) -> tuple[Any, ...]:
        """The baseline's pass without a graph, and that of the batch itself."""
        with torch.no_grad():
            other = forward(
                {"input_ids": batch["KL_input_ids"], "attention_mask": batch["KL_attention_mask"]}
            ).logits
        baseline = _of_labels(other, batch["KL_labels"])
        del other
        out = forward({name: batch[name] for name in ("input_ids", "attention_mask")})
        logits = out.logits
        logps = _of_labels(logits, batch["completion_labels"])
        here = wanted.to(logits.device)
        chosen, rejected = torch.nonzero(here).view(-1), torch.nonzero(~here).view(-1)
        return (
            logps.index_select(0, chosen),
            logps.index_select(0, rejected),
            logits.index_select(0, chosen),
            logits.index_select(0, rejected),
            baseline,
        )


def _next_token(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = logits[..., :-1, :].contiguous()
    labels = labels[..., 1:].contiguous()
    return functional.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))


def _of_labels(logits: torch.Tensor, labels: torch.Tensor, average: bool = False) -> torch.Tensor:
    """The sum of the labels' log-probabilities in each row, or their mean."""
    labels = labels[:, 1:].clone()
    logits = logits[:, :-1, :]
    counted = labels != _IGNORED
    labels = torch.where(labels == _IGNORED, 0, labels)
    logps = log_probs(logits, labels)
    total = (logps * counted).sum(-1)
    return total / counted.sum(-1) if average else total


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)), each way where it is exact."""
    return torch.where(x < _TURN, torch.log1p(-torch.exp(x)), torch.log(-torch.expm1(x)))
