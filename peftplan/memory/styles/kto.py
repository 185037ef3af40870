"""KTO: single completions, each wanted or not, against a reference and a baseline.

The baseline is what policy and reference make of other prompts' completions, in passes of their own without a
graph: four passes in all, one of which is trained. Half of a micro-batch is taken as wanted. The logits of wanted
and unwanted rows are copied and kept for metrics.

Source: trl-kto, trl-log-probs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftplan.memory.passes import Passes
from peftplan.memory.player import Player
from peftplan.memory.styles.odds import of_labels
from peftplan.memory.styles.preference import policy_head
from peftplan.memory.styles.style import Batch, Style, trainers_numbers, whole
from peftplan.specs.formats import BOOL, FP32, INT64
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Tensor, bytes_of

_OTHERS = 2  # where the baseline's ids stand among what a batch holds beside its own
_PRECOMPUTED = 5


def batch(t: Player, step: StepSpec) -> Batch:
    """Ids, a mask and labels, the same of the baseline, and what a reference gave before."""
    t.drops = False
    names = ("input ids", "attention mask", "completion labels")
    made: list[Tensor] = []
    for _ in range(step.num_batches):
        made += [whole(t, step, name) for name in (*names, *(f"baseline's {name}" for name in names))]
        if step.style.reference == "precomputed":
            rows = step.num_rows
            made += [
                t.new((rows,), rows, FP32, f"log-probabilities {of}") for of in ("of the rows", "of the baseline")
            ]
    return Batch(made.pop(0), None, made + trainers_numbers(t, step, counts=False))


def kto(passes: Passes, given: Batch) -> tuple[Tensor, Any]:
    """The baseline's pass and the trained one, the reference's two, and one loss for each row."""
    t, rows = passes.t, passes.step.num_rows
    counts = [t.new((), 1, INT64, "_to_copy", 8), t.new((), 1, INT64, "rsub", 8)]
    others = given.beside[_OTHERS]
    baseline = of_labels(t, passes.without_graph(passes.model, others, policy_head))
    _, output = passes.forward(given.ids, None, policy_head, leaves=True)
    logps, kept = _selected(t, [of_labels(t, output), output])
    del output
    if passes.step.style.reference == "precomputed":
        places = _places(t, rows, False)
        held = t.part(given.beside[_PRECOMPUTED], (rows,))
        references = [t.index_select(held, place) for place in places]
        their_baseline, unused = given.beside[_PRECOMPUTED + 1], None
    else:
        with t.no_grad():
            their_baseline = of_labels(t, passes.reference(others, policy_head))
            theirs = passes.reference(given.ids, policy_head)
            references, unused = _selected(t, [of_labels(t, theirs), theirs])
            unused.pop(0)
            del theirs
    with t.no_grad():
        apart = t.mean_all(t.subtract(baseline, their_baseline))
        apart = t.mean_all(apart)
        apart = t.like(apart, "clamp")
    losses, ratios, rewards = [], [], []
    for number, (ours, theirs) in enumerate(zip(logps, references)):
        ratio = t.subtract(ours, theirs)
        distance = t.subtract(ratio, apart) if not number else t.subtract(apart, ratio)
        scaled = t.mul_scalar(distance)
        del distance
        share = t.sigmoid(scaled)
        del scaled
        losses.append(t.one_less(share))
        del share
        rewards.append(t.like(ratio, "mul"))
        ratios.append(ratio)
        del ratio
    weighed = [t.mul_scalar(x) for x in losses]
    joined = t.cat(weighed, (rows,))
    del weighed, ours, theirs
    for x in (rewards[0], logps[0], kept[0], rewards[1], logps[1], kept[1]):
        total = t.new((), 1, x.dtype, "nansum", bytes_of(x))
        del total, x
    del counts
    loss = t.nan_mean(joined)
    del unused
    return loss, None


def _selected(t: Player, sources: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Wanted rows, and unwanted ones, of log-probabilities and of logits."""
    places = _places(t, sources[0].shape[0], True)
    chosen = [[t.index_select(source, place) for place in places[:2]] for source in sources]
    return chosen[0], chosen[1]


def _places(t: Player, rows: int, turned: bool) -> list[Tensor]:
    """Numbers of the wanted rows and of the others; with them, where it is `turned` here, which they are."""
    wanted = rows - rows // 2
    here: Tensor | None = t.new((rows,), rows, BOOL, "_to_copy", rows)
    first = t.new((wanted,), wanted, INT64, "nonzero", rows)
    if not turned:
        here = None
    other = t.new((rows,), rows, BOOL, "bitwise_not" if turned else "_to_copy", rows)
    second = t.new((rows - wanted,), rows - wanted, INT64, "nonzero", rows)
    del other
    return [first, second, here] if here is not None else [first, second]


KTO = Style("kto", batch, kto)
