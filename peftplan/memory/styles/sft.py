"""Next-token prediction: labels go to the model, whose forward computes the loss.

Source: transformers-loss, transformers-trainer.
"""

from __future__ import annotations

from typing import Any

from peftplan.errors import BadInput
from peftplan.memory.passes import Passes, logits_of, scaled_logits
from peftplan.memory.player import Player
from peftplan.memory.styles.style import Batch, Style, trainers_numbers, whole
from peftplan.specs.formats import FP32
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Tensor


def batch(t: Player, step: StepSpec) -> Batch:
    """Token ids, which are the labels too, and a mask; Trainer has labels of their own, and a step's batches."""
    ids = whole(t, step, "input ids")
    beside = [whole(t, step, "positions" if step.padding_free else "attention mask")]
    if step.padding_free:
        t.positions, t.num_packed = beside[0], step.micro_batch
    if not step.trainer:
        return Batch(ids, ids, beside)
    labels = whole(t, step, "labels")
    for _ in range(step.num_batches - 1):
        beside += [whole(t, step, name) for name in ("input ids", "attention mask", "labels")]
    return Batch(ids, labels, beside + trainers_numbers(t, step))


def head(t: Player, model: ModelSpec, step: StepSpec, x: Tensor, labels: Tensor | None) -> tuple[Any, Any]:
    """Logits and cross-entropy over the vocabulary, or both at once."""
    assert labels is not None
    logits = None
    if step.loss != "fused":
        logits = logits_of(t, model, x)
    t.mark("loss")
    if logits is not None:
        made = [logits]
        del logits  # it ends while it is scaled
        logits = scaled_logits(t, model, made)
    if logits is None:
        hidden = model.transform(t, x) if model.transform else x
        loss = t.linear_cross_entropy(hidden, model.head, labels)
        del hidden
    elif step.loss == "chunked":
        loss = t.chunked_loss(logits, labels)
    elif model.encoder:
        loss = t.masked_lm_loss(logits, labels)
    else:
        if t.behaviour.loss_form == "wide":
            logits = t.to(logits, FP32)
        loss = t.causal_lm_loss(logits, labels)
    return loss, logits


def loss(passes: Passes, given: Batch) -> tuple[Tensor, Any]:
    """One pass."""
    model, step = passes.model, passes.step
    if step.loss != "standard" and model.encoder:
        raise BadInput(
            f"--loss {step.loss} is made for causal language models, and {model.family} is none; "
            "take --loss standard"
        )
    return passes.forward(given.ids, given.labels, head)


STYLE = Style("sft", batch, loss, causal=False)
