"""Play one training step and read its timeline: segments, repeated blocks multiplied, phases.

Blocks that are alike - of one run, or of several runs that share a block - are played once and that play
stands for all; `timeline` reads the whole model's levels from it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from peftplan.memory.player import Player
from peftplan.memory.timeline import Moment, Play, Timeline, read_timeline
from peftplan.specs.formats import FP32, INT64
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Tensor

__all__ = ["Moment", "Play", "Timeline", "play_evaluation", "play_step"]


def play_step(model: ModelSpec, step: StepSpec) -> Timeline:
    """Play forward, loss and backward of one micro-step, optimizer state already there."""
    t = Player(step.accumulating)
    t.attention, t.compute_capability = step.attention, step.compute_capability
    shape, numel = (step.micro_batch, step.seq_len), step.micro_batch * step.seq_len
    ids = t.new(shape, numel, INT64, "input ids")
    mask = t.new(shape, numel, INT64, "attention mask")
    t.kind = "activation"
    t.shared = _shared_weights(model)
    # gradient_checkpointing_enable makes the token embeddings ask for a gradient, frozen or not
    t.leaf_ids = ids if step.checkpointing else None
    timeline = Timeline(t, [])
    loss, logits = _forward(timeline, model, step, ids)
    t.mark("forward end")
    timeline.forward_end_clock = t.clock
    end_segment = len(t.segments) - 1
    del logits
    t.kind = "temporary"
    t.start_backward(loss)
    t.mark("end")
    read_timeline(timeline, end_segment)
    timeline.records = list(t.records)
    del ids, mask, loss
    return timeline


def _shared_weights(model: ModelSpec) -> set[int]:
    """Trained weights that stand in more than one place outside the blocks (tied embeddings)."""
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in model.stem.named_parameters():
        if parameter.edge is not None:
            (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def play_evaluation(model: ModelSpec, step: StepSpec) -> int:
    """The highest level of a forward pass without gradients, above the resident state, rounded bytes.

    Nothing is kept for backward, so every block of a run peaks at the same level: each is played once.
    """
    t = Player()
    t.attention, t.compute_capability, t.training = step.attention, step.compute_capability, False
    shape, numel = (step.micro_batch, step.seq_len), step.micro_batch * step.seq_len
    ids = t.new(shape, numel, INT64, "input ids")
    mask = t.new(shape, numel, INT64, "attention mask")
    with t.no_grad():
        loss, logits = _forward(Timeline(t, []), model, step, ids)
    t.mark("end")
    level = max(segment.peak_bytes for segment in t.segments)
    del ids, mask, loss, logits
    return level


def _forward(timeline: Timeline, model: ModelSpec, step: StepSpec, ids: Tensor) -> tuple[Tensor, Any]:
    t = timeline.player
    standing: dict[tuple[int, bool], int] = {}
    with t.autocasting(step.autocast):
        x, given = model.enter(t, ids)
        entered = x if model.keeps_first_input else None
        passed = [x]  # handed on in a list, so that no name here outlives its use
        del x
        for run in model.runs:
            passed.append(_play_run(timeline, run, step, passed.pop(), given, standing))
        t.mark("head")
        t.nodes.append("head backward done")
        t.layer = -1
        x = model.leave(t, passed.pop())
        del entered, given
        t.kept.clear()
        if step.loss == "standard":
            logits = model.logits(t, x) if model.logits else t.call(model.head_path, model.head, x)
            t.mark("loss")
            loss = t.masked_lm_loss(logits, ids) if model.encoder else t.causal_lm_loss(logits, ids)
        else:
            logits = None
            t.mark("loss")
            loss = t.linear_cross_entropy(x, model, ids, step.loss)
        del x
    if step.trainer and step.autocast is not None and logits is not None:
        # accelerate's convert_outputs_to_fp32 wraps the model's forward
        logits = t.to(logits, FP32)
    return loss, logits


def _play_run(
    timeline: Timeline,
    run: BlockRun,
    step: StepSpec,
    x: Tensor,
    given: Any,
    standing: dict[tuple[int, bool], int],
) -> Tensor:
    """Play the run's blocks that no play stands for yet; `standing` has a play by block and incoming gradient."""
    t, plays = timeline.player, timeline.plays
    left = run.count
    while left:
        had_grad = x.edge is not None
        alike = standing.get((id(run.block), had_grad))
        if alike is not None:
            plays[alike].count += left
            timeline.order.append((alike, left))
            break
        index = run.first_index + run.count - left
        name = f"{run.path}.{index}"
        t.mark(name)
        t.nodes.append(name + " backward done")
        t.layer = index
        plays.append(Play(name, index, 1, forward_segment=len(t.segments) - 1))
        timeline.order.append((len(plays) - 1, 1))
        forward = partial(_call_block, t, name, run, given)
        x = t.checkpoint(forward, x) if step.checkpointing else forward(x)
        left -= 1
        # The next ones are like this one, unless gradients only begin here, or what came in is the
        # embeddings, which outlive this block where a checkpoint would keep them anyway.
        if had_grad == (x.edge is not None) and (step.checkpointing or len(plays) > 1):
            standing[id(run.block), had_grad] = len(plays) - 1
    return x


def _call_block(t: Player, name: str, run: BlockRun, given: Any, x: Tensor) -> Tensor:
    return t.call(name, run.block, x, given)  # type: ignore[no-any-return]
