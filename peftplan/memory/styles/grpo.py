"""GRPO: completions that the policy has generated, each held against the others of its prompt.

A micro-batch counts completions. A reference, where there is one, scores them in a pass without a graph; the
policy's pass gives logits of the completion alone, which are scaled by the temperature in place and copied for the
metric of entropy. What generates the completions stands beside the step (`memory.generated`).

Source: trl-grpo, trl-log-probs.
"""

from __future__ import annotations

from typing import Any

from peftplan.memory.passes import Passes, logits_of, scaled_logits
from peftplan.memory.player import Player
from peftplan.memory.styles.preference import entropy_of, log_probs
from peftplan.memory.styles.style import Batch, Style, trainers_numbers
from peftplan.specs.formats import BOOL, FP32, INT64
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Tensor, bytes_of


def batch(t: Player, step: StepSpec) -> Batch:
    """Prompts and completions with their masks, how much better each is than its group, the number of tokens."""
    rows, completion = step.num_rows, step.style.completion_len
    lengths = (step.row_len - completion, completion)
    made: list[Tensor] = []
    for _ in range(step.num_batches):
        for length, name in zip(lengths, ("prompts", "completions")):
            made += [t.new((rows, length), rows * length, INT64, what) for what in (name, f"mask of {name}")]
        made += [t.new((rows,), rows, FP32, "advantages"), t.new((), 1, INT64, "number of tokens")]
    return Batch(made.pop(0), None, made + trainers_numbers(t, step, counts=False))


def head(t: Player, model: ModelSpec, step: StepSpec, x: Tensor, labels: Tensor | None) -> tuple[Any, Any]:
    """Logits of the completion's tokens and the one before them."""
    x = t.slice(x, (x.shape[0], step.style.completion_len + 1, x.shape[2]))
    if isinstance(model.head, Linear) and model.head.weight.edge is not None:
        x = t.contiguous(x)  # folded for the weight's gradient
    made = [logits_of(t, model, x)]
    del x
    if t.grad_enabled:
        t.mark("loss")
        t.nodes.append("loss backward done")
    return None, scaled_logits(t, model, made)


def grpo(passes: Passes, given: Batch) -> tuple[Tensor, Any]:
    """The reference's pass and the policy's, and the clipped ratios of their log-probabilities."""
    t = passes.t
    mask, advantages, number = given.beside[2], t.view(given.beside[3], (given.ids.shape[0], 1)), given.beside[4]
    reference = None
    if passes.step.style.reference != "none":
        with t.no_grad():
            reference, _ = scored(passes, given, False)
    logps, entropies = scored(passes, given, True)
    ratio = t.subtract(logps, Tensor(logps.shape, logps.numel, logps.dtype, logps.storage, None))
    first = t.power_of_e(ratio)
    apart = None
    if reference is not None:
        grown = t.power_of_e(t.subtract(reference, logps))
        apart = t.add_scalar(t.subtract(grown, t.subtract(reference, logps)))
        del grown
    second = t.clamp(first)
    whole, clipped = t.mul(first, advantages), t.mul(second, advantages)
    of_token = t.neg(t.minimum(whole, clipped))
    if apart is not None:
        of_token = t.add(of_token, t.mul_scalar(apart))
    total = t.sum_all(t.mul(of_token, mask))
    loss = t.divide_each(total, t.new((), 1, FP32, "div", 8))
    with t.no_grad():
        del total
        _metrics(t, mask, entropies, first, advantages, apart)
    return loss, None


def scored(passes: Passes, given: Batch, trained: bool) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the completions' tokens, and entropies of the trained pass: [rows, tokens]."""
    t, step = passes.t, passes.step
    rows, length, completion = step.num_rows, step.row_len, step.style.completion_len
    ids = t.new((rows, length), rows * length, INT64, "cat")
    mask = t.new((rows, length), rows * length, INT64, "cat")
    if trained:
        t.follow_ids(ids)
        _, output = passes.forward(ids, None, head, leaves=True)
        t.follow_ids(None)
    else:
        output = passes.reference(ids, head)
    shape = (rows, completion, output.shape[-1])
    part = t.slice(t.slice(t.scale_part(output, shape), shape), shape)
    logps = log_probs(t, part, t.part(ids, (rows, completion)))
    entropies = None
    if trained:
        with t.no_grad():
            flat = t.like(part, "clone") if rows > 1 else part
            entropies = entropy_of(t, flat)
            del flat
            entropies = t.like(entropies, "cat")
    del part
    found = t.cat((logps,), logps.shape)
    del mask
    return found, entropies


def _metrics(
    t: Player, mask: Tensor, entropies: Tensor | None, first: Tensor, advantages: Tensor, apart: Tensor | None
) -> None:
    """Means over the tokens of how far the reference is, of entropy, and of what was clipped."""
    assert entropies is not None
    number = t.new((), 1, INT64, "sum", bytes_of(mask))
    count = t.new((), 1, FP32, "clamp")
    del number
    held = [_mean(t, x, mask, count) for x in (apart, entropies) if x is not None]
    clipped = [_both(t, first, advantages, op) for op in ("lt", "gt")]
    clipped.append(t.like(clipped[0], "bitwise_or"))
    for part in clipped:
        wide = t.to(part, FP32)
        held.append(_mean(t, wide, mask, count))
        del wide
    del held, count


def _mean(t: Player, x: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    product = t.elementwise_result(x, mask, "mul")
    total = t.new((), 1, product.dtype, "sum", bytes_of(product))
    del product
    return t.new((), 1, FP32, "div", bytes_of(total, count))


def _both(t: Player, first: Tensor, advantages: Tensor, op: str) -> Tensor:
    """Where a ratio lies beyond the clip and its completion is on that side."""
    ratio = t.new(first.shape, first.numel, BOOL, op, bytes_of(first))
    side = t.new(advantages.shape, advantages.numel, BOOL, op, bytes_of(advantages))
    return t.new(first.shape, first.numel, BOOL, "bitwise_and", bytes_of(ratio, side))


GRPO = Style("grpo", batch, grpo)
