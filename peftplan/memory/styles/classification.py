"""Sequence classification: the head scores every position, one position of each sequence enters the loss.

Source: transformers-seq-cls.
"""

from __future__ import annotations

from typing import Any

from peftplan.memory.passes import Passes, logits_of
from peftplan.memory.player import Player
from peftplan.memory.styles.style import Batch, Style, trainers_numbers, whole
from peftplan.specs.formats import BOOL, FP32, INT32, INT64
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Tensor


def batch(t: Player, step: StepSpec) -> Batch:
    """Token ids, a mask, and a label for each sequence: a class, or a number to come near to."""
    ids = whole(t, step, "input ids")
    beside = [whole(t, step, "attention mask")]
    dtype = FP32 if step.style.num_labels == 1 else INT64
    labels = t.new((step.num_rows,), step.num_rows, dtype, "labels")
    if not step.trainer:
        return Batch(ids, labels, beside)
    for _ in range(step.num_batches - 1):
        beside += [whole(t, step, name) for name in ("input ids", "attention mask")]
        beside.append(t.new((step.num_rows,), step.num_rows, dtype, "labels"))
    return Batch(ids, labels, beside + trainers_numbers(t, step))


def head(t: Player, model: ModelSpec, step: StepSpec, x: Tensor, labels: Tensor | None) -> tuple[Any, Any]:
    """Scores of all positions, those of each sequence's last token, and their loss."""
    assert labels is not None
    logits = logits_of(t, model, x) if model.scores is None else model.scores(t, x)
    t.mark("loss")
    if t.grad_enabled:
        t.nodes.append("loss backward done")
    if model.scores is not None:
        return _loss(t, step, logits, labels), logits
    rows, length = step.num_rows, step.seq_len
    unequal = t.new((rows, length), rows * length, BOOL, "ne", 8 * rows * length)
    real = t.new((rows, length), rows * length, INT32, "_to_copy", rows * length)
    del unequal
    places = t.new((length,), length, INT32, "arange", 0)
    numbered = t.new((rows, length), rows * length, INT32, "mul")
    last = t.new((rows,), rows, INT64, "argmax", 4 * rows * length)
    del numbered
    every = t.new((rows,), rows, INT64, "arange", 0)
    pooled = t.index(logits, (every, last), (rows, step.style.num_labels))
    del every
    loss = _loss(t, step, pooled, labels)
    del real, places, last
    return loss, pooled


def _loss(t: Player, step: StepSpec, pooled: Tensor, labels: Tensor) -> Tensor:
    """Of one score for each class and sequence, or of one number."""
    if step.style.num_labels == 1:
        return t.mean_squared_error(pooled, labels)
    return t.cross_entropy(pooled, labels, mark=False)


def loss(passes: Passes, given: Batch) -> tuple[Tensor, Any]:
    """One pass."""
    return passes.forward(given.ids, given.labels, head)


STYLE = Style("classification", batch, loss, causal=False)
