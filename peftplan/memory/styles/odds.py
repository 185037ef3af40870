"""ORPO: the chosen rows' cross-entropy, and the odds of the chosen rows against those of the rejected ones.

No reference. Logits are whole, their chosen half is copied for the cross-entropy, and all of them are gone through
once more for the odds.

Source: trl-orpo, trl-log-probs.
"""

from __future__ import annotations

from typing import Any

from peftplan.memory.passes import Passes
from peftplan.memory.player import Player
from peftplan.memory.styles.preference import log_probs, policy_head
from peftplan.memory.styles.style import Batch, Style, trainers_numbers, whole
from peftplan.specs.formats import BOOL, FP32, INT64
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Tensor, bytes_of


def batch(t: Player, step: StepSpec) -> Batch:
    """Token ids, a mask and labels of the completions: a chosen and a rejected row for each pair."""
    t.drops = False
    made: list[Tensor] = []
    for _ in range(step.num_batches):
        made += [whole(t, step, name) for name in ("input ids", "attention mask", "completion labels")]
    return Batch(made.pop(0), None, made + trainers_numbers(t, step, counts=False))


def orpo(passes: Passes, given: Batch) -> tuple[Tensor, Any]:
    """One pass, and two losses of its logits."""
    t, pairs = passes.t, passes.step.micro_batch
    _, logits = passes.forward(given.ids, None, policy_head, leaves=True)
    labels = _where_masked(t, t.new(given.ids.shape, given.ids.numel, INT64, "clone"))
    entropy = _next_token(t, _first(t, logits, pairs), labels)
    logps = of_labels(t, logits, average=True)
    first, second = (t.to(_first(t, logps, pairs), FP32) for _ in range(2))
    odds = t.subtract(t.subtract(first, second), t.subtract(_log1mexp(t, first), _log1mexp(t, second)))
    ratio = t.log_sigmoid(odds)
    losses = t.mul_scalar(ratio)
    with t.no_grad():
        held = [t.mul_scalar(first), t.mul_scalar(second), t.mean_all(ratio), t.mean_all(odds)]
    loss = t.subtract(entropy, t.mean_all(losses))
    with t.no_grad():
        _metrics(t, held, logps, logits)
    del held
    return loss, None


def _metrics(t: Player, held: list[Tensor], logps: Tensor, logits: Tensor) -> None:
    """Means of rewards, of how often the chosen one is ahead, of log-probabilities and of logits."""
    above = t.new(held[0].shape, held[0].numel, BOOL, "gt", 2 * bytes_of(held[0]))
    often = t.to(above, FP32)
    del above
    apart = t.elementwise_result(held[0], held[1], "sub")
    numbers = [t.mean_all(x) for x in (held[0], held[1], often, apart)]
    del apart
    half = t.part(logps, (logps.shape[0] // 2,))
    numbers += [t.mean_all(half) for _ in range(2)]
    part = t.part(logits, (logits.shape[0] // 2, *logits.shape[1:]))
    numbers += [t.mean_all(part) for _ in range(2)]
    del numbers, often


def _where_masked(t: Player, labels: Tensor) -> Tensor:
    """Labels where a test of numbers holds, one number elsewhere."""
    equal = t.new(labels.shape, labels.numel, BOOL, "eq", bytes_of(labels))
    number = t.new((), 1, INT64, "scalar_tensor", 0)
    out = t.new(labels.shape, labels.numel, INT64, "where", bytes_of(equal, labels))
    del equal, number
    return out


def _first(t: Player, x: Tensor, rows: int) -> Tensor:
    """Some rows of a batch; their gradient is one of the whole."""
    return t.slice(x, (rows, *x.shape[1:]))


def _next_token(t: Player, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of rows that are copied without their last position."""
    rows, length, vocab = logits.shape
    logits = t.slice(logits, (rows, length - 1, vocab))
    if rows > 1:
        logits = t.contiguous(logits)
        labels = t.new((rows, length - 1), rows * (length - 1), INT64, "clone")
    return t.cross_entropy(logits, labels, mark=False)


def of_labels(t: Player, logits: Tensor, average: bool = False) -> Tensor:
    """The sum of the labels' log-probabilities in each row, or their mean: [rows]."""
    rows, length, vocab = logits.shape
    shape, numel = (rows, length - 1), rows * (length - 1)
    labels = t.new(shape, numel, INT64, "clone")
    counted = t.new(shape, numel, BOOL, "ne", bytes_of(labels))
    labels = _where_masked(t, labels)
    logps = log_probs(t, t.slice(logits, (rows, length - 1, vocab)), labels)
    total = t.sum_of_rows(t.mul(logps, counted))
    if not average:
        return total
    return t.divide_each(total, t.new((rows,), rows, INT64, "sum", bytes_of(counted)))


def _log1mexp(t: Player, x: Tensor) -> Tensor:
    """log(1 - exp(x)), each way where it is exact."""
    below = t.new(x.shape, x.numel, BOOL, "lt", bytes_of(x))
    first = t.logarithm(t.neg(t.power_of_e(x)), "log1p")
    second = t.logarithm(t.neg(t.power_of_e(x, "expm1")))
    return t.either(below, first, second)


ORPO = Style("orpo", batch, orpo)
