"""Preferences: log-probabilities of whole completions, held against a reference's.

A micro-batch counts pairs; a forward pass has a row for the chosen and one for the rejected of each. Logits are
whole, and so are a copy of them without the last position and what their log-softmax keeps; metrics are computed
from the same logits before the loss goes backward. Dropout is off.

Source: trl-dpo, trl-log-probs.
"""

from __future__ import annotations

from typing import Any

from peftplan.memory.passes import Passes, logits_of, scaled_logits
from peftplan.memory.player import Player
from peftplan.memory.styles.style import Batch, Style, trainers_numbers, whole
from peftplan.specs.formats import BOOL, FP32, INT64
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Tensor, bytes_of

_ENTROPY_ROWS = 128  # tokens whose logits are taken at once


def batch(t: Player, step: StepSpec) -> Batch:
    """Token ids, a mask, which tokens are of the completion, and what a reference gave before."""
    t.drops = False
    made: list[Tensor] = []
    for _ in range(step.num_batches):
        made += [whole(t, step, name) for name in ("input ids", "attention mask", "completion mask")]
        if step.style.reference == "precomputed":
            pairs = step.micro_batch
            made += [t.new((pairs,), pairs, FP32, f"log-probabilities of the {name}") for name in _KINDS]
    ids = made.pop(0)
    return Batch(ids, None, made + trainers_numbers(t, step, counts=False))


_KINDS = ("chosen", "rejected")


def policy_head(t: Player, model: ModelSpec, step: StepSpec, x: Tensor, labels: Tensor | None) -> tuple[Any, Any]:
    """Whole logits, and no loss."""
    made = [logits_of(t, model, x)]
    if t.grad_enabled:
        t.mark("loss")
        t.nodes.append("loss backward done")
    return None, scaled_logits(t, model, made)


def dpo(passes: Passes, given: Batch) -> tuple[Tensor, Any]:
    """The policy's pass, the reference's, and the sigmoid of how far the pairs lie apart."""
    t, step = passes.t, passes.step
    pairs = step.micro_batch
    _, output = passes.forward(given.ids, None, policy_head, leaves=True)
    logits = without_last(t, output)
    labels, mask = _without_first(t, step), _without_first(t, step)
    logps = of_completions(t, logits, labels, mask)
    chosen, rejected = t.split(t.sum_of_rows(logps), [(pairs,)] * 2)
    held: list[Any] = []
    if step.style.reference == "precomputed":
        references = [t.part(made, made.shape) for made in given.beside[2:4]]
    else:
        reference = passes.reference(given.ids, policy_head)
        held = [reference, without_last(t, reference)]
        with t.no_grad():
            held.append(of_completions(t, held[1], labels, mask))
            references = t.split(t.sum_of_rows(held[2]), [(pairs,)] * 2)
        del reference
    chosen_ratios, rejected_ratios = t.subtract(chosen, references[0]), t.subtract(rejected, references[1])
    apart = t.subtract(chosen_ratios, rejected_ratios)
    losses = t.neg(t.log_sigmoid(t.mul_scalar(apart)))
    loss = t.add_scalar(t.mul_scalar(t.mean_all(losses)))
    with t.no_grad():
        metrics(t, logits, mask, pairs * step.style.completion_len)
    return loss, None


def _without_first(t: Player, step: StepSpec) -> Tensor:
    """A copy of integers for every token of a row but the first."""
    rows, length = step.num_rows, step.row_len - 1
    return t.new((rows, length), rows * length, INT64, "clone")


def metrics(t: Player, logits: Tensor, mask: Tensor, num_tokens: int) -> None:
    """Entropy, mean logits of `num_tokens` chosen and as many rejected tokens, how often the best was right."""
    vocab, half = logits.shape[-1], (mask.shape[0] // 2, mask.shape[1])
    entropy = entropy_of(t, logits)
    product = t.new(mask.shape, mask.numel, logits.dtype, "mul", bytes_of(entropy, mask))
    held = [t.new((), 1, logits.dtype, "sum", bytes_of(product)), t.new((), 1, INT64, "sum", bytes_of(mask))]
    del product
    held.append(t.new((), 1, logits.dtype, "div", 8))
    held.pop()
    for _ in _KINDS:
        inside = t.new(half, mask.numel // 2, BOOL, "_to_copy", bytes_of(mask) // 2)
        places = t.new((num_tokens, 2), 2 * num_tokens, INT64, "nonzero", bytes_of(inside))
        taken = t.new((num_tokens, vocab), num_tokens * vocab, logits.dtype, "index")
        del places, inside
        mean = t.new((num_tokens,), num_tokens, logits.dtype, "mean", bytes_of(taken))
        del taken
        held.append(t.new((), 1, logits.dtype, "sum", bytes_of(mean)))
        del mean
        held.append(t.new((), 1, INT64, "sum", bytes_of(mask) // 2))
    likeliest = t.new(half, mask.numel // 2, INT64, "argmax", bytes_of(logits) // 2)
    equal = t.new(half, mask.numel // 2, BOOL, "eq", 2 * bytes_of(likeliest))
    inside = t.new(half, mask.numel // 2, BOOL, "_to_copy", bytes_of(mask) // 2)
    right = t.new(half, mask.numel // 2, BOOL, "bitwise_and")
    del equal, inside
    held.append(t.new((), 1, INT64, "sum", bytes_of(right)))
    del likeliest, right


def entropy_of(t: Player, logits: Tensor) -> Tensor:
    """The entropy of each token's distribution, some rows at once: [rows, tokens]."""
    vocab, rows = logits.shape[-1], logits.numel // logits.shape[-1]
    found, logps = [], None
    for start in range(0, rows, _ENTROPY_ROWS):
        some = min(_ENTROPY_ROWS, rows - start)
        shape, numel = (some, vocab), some * vocab
        now = t.new(shape, numel, logits.dtype, "_log_softmax")
        logps = now
        grown = t.new(shape, numel, logits.dtype, "exp")
        product = t.new(shape, numel, logits.dtype, "mul", 2 * bytes_of(now))
        del grown, now
        total = t.new((some,), some, logits.dtype, "sum", bytes_of(product))
        del product
        found.append(t.like(total, "neg"))
        del total
    out = t.new(logits.shape[:-1], rows, logits.dtype, "cat")
    del logps
    return out


def without_last(t: Player, logits: Tensor) -> Tensor:
    """Logits of all positions but the last, which predicts nothing: a copy where there are several rows."""
    rows, length, vocab = logits.shape
    part = t.slice(logits, (rows, length - 1, vocab))
    return t.contiguous(part) if rows > 1 else part


def of_completions(t: Player, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of each label, zero outside the completion: [rows, tokens]."""
    logps = log_probs(t, logits, labels)
    outside = t.new(mask.shape, mask.numel, BOOL, "eq", bytes_of(mask))
    return t.fill_masked(logps, outside)


def log_probs(t: Player, logits: Tensor, labels: Tensor) -> Tensor:
    """Log-softmax at the labels, row by row: in fp32 the logit less the log of the sum, else all of it."""
    index = t.view(labels, (*labels.shape, 1))
    if logits.dtype is FP32:
        chosen = t.gather_one(logits, index)
        sums = [t.logsumexp(row) for row in t.rows_of(logits)]
        stacked = t.stack(sums)
        del sums
        found = t.subtract(chosen, t.view(stacked, index.shape))
    else:
        places = t.part(index, index.shape[1:])
        picked = []
        for row in t.rows_of(logits):
            of_row = t.log_softmax(row)
            picked.append(t.gather_one(of_row, places))
        found = t.stack(picked)
        del row, of_row, picked
    return t.view(found, labels.shape)


DPO = Style("dpo", batch, dpo)
