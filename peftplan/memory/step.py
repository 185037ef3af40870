"""Play one training step and read its timeline: segments, repeated blocks multiplied, phases.

Blocks that are alike - of one run, or of several runs that share a block - are played once and that play
stands for all; `timeline` reads the whole model's levels from it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from peftplan.errors import BadInput
from peftplan.memory.player import Player
from peftplan.memory.timeline import Play, Timeline, read_timeline
from peftplan.specs.formats import FP32, INT64, DType
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Linear
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Tensor


def play_step(model: ModelSpec, step: StepSpec) -> Timeline:
    """Play forward, loss and backward of one micro-step, optimizer state already there."""
    t = Player(step.accumulating)
    ids, mask = _start(t, model, step)
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
    t.returned.clear()
    t.kind = "temporary"
    t.start_backward(loss)
    t.mark("end")
    read_timeline(timeline, end_segment)
    del ids, mask, loss
    return timeline


def _start(t: Player, model: ModelSpec, step: StepSpec) -> tuple[Tensor, Tensor]:
    """Settle how attention runs and make the batch: token ids and attention mask."""
    _choose_attention(t, model, step)
    shape, numel = (step.micro_batch, step.seq_len), step.micro_batch * step.seq_len
    return t.new(shape, numel, INT64, "input ids"), t.new(shape, numel, INT64, "attention mask")


def _choose_attention(t: Player, model: ModelSpec, step: StepSpec) -> None:
    """The attention implementation: the one asked for, or eager where the family has no other."""
    t.compute_capability = step.compute_capability
    kinds = model.attention_kinds
    if step.attention == "flash" and "flash" not in kinds:
        raise BadInput(
            f"--attention flash: transformers has no flash attention for {model.family}; take {' or '.join(kinds)}"
        )
    t.attention = step.attention if step.attention in kinds else "eager"
    if t.attention == "flash":
        linears = (m for _, m in model.runs[0].block.walk() if isinstance(m, Linear))
        t.load_dtype = next(linear.weight.dtype for linear in linears)


def _shared_weights(model: ModelSpec) -> set[int]:
    """Trained weights that stand in more than one place (tied embeddings), or are applied more than once."""
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in model.stem.named_parameters():
        if parameter.edge is not None:
            (shared if id(parameter) in seen else seen).add(id(parameter))
    for run in model.runs:
        for _, module in run.block.walk():
            if module.applied_often:
                shared.update(id(p) for _, p in module.named_parameters() if p.edge is not None)
    return shared


def play_evaluation(model: ModelSpec, step: StepSpec) -> int:
    """The highest level of a forward pass without gradients, above the resident state, rounded bytes.

    Nothing is kept for backward, so every block of a run peaks at the same level: each is played once.
    """
    t = Player()
    ids, mask = _start(t, model, step)
    t.training = False
    with t.no_grad():
        loss, logits = _forward(Timeline(t, []), model, step, ids)
    t.mark("end")
    level = max(segment.peak_bytes for segment in t.segments)
    del ids, mask, loss, logits
    return level


def _forward(timeline: Timeline, model: ModelSpec, step: StepSpec, ids: Tensor) -> tuple[Tensor, Any]:
    t = timeline.player
    standing: dict[tuple[int, bool, bool, DType], int] = {}
    with t.autocasting(step.autocast):
        x, given = model.enter(t, ids)
        entered = x if model.keeps_first_input else None
        passed, handed = [x], [given]  # handed on in lists, so that no name here outlives its use
        del x, given
        first = 0
        for run in model.runs:
            if run.before is not None:
                t.mark(run.path + " entered")
                t.nodes.append(run.path + " entry backward done")
                t.layer = -1
                x, given = run.before(t, passed.pop(), handed.pop())
                passed.append(x)
                handed.append(given)
                del x, given
            passed.append(_play_run(timeline, run, first, step, passed, handed, standing))
            first += run.count
        t.mark("head")
        t.nodes.append("head backward done")
        t.layer = -1
        x = model.leave(t, passed.pop())
        del entered
        handed.clear()
        if t.release_kept():
            t.mark("logits")
        logits = None
        if step.loss != "fused":
            logits = _logits(t, model, x)
        t.mark("loss")
        if logits is None:
            hidden = model.transform(t, x) if model.transform else x
            loss = t.linear_cross_entropy(hidden, model.head, ids)
            del hidden
        elif step.loss == "chunked":
            loss = t.chunked_loss(logits, ids, shift=not model.encoder)
        elif model.encoder:
            loss = t.masked_lm_loss(logits, ids)
        else:
            loss = t.causal_lm_loss(logits, ids)
        del x
        t.kept_to_loss.clear()
    if step.trainer and step.autocast is not None and logits is not None:
        # accelerate's convert_outputs_to_fp32 wraps the model's forward
        logits = t.to(logits, FP32)
        t.returned[:] = [t.to(tensor, FP32) for tensor in t.returned]
    return loss, logits


def _logits(t: Player, model: ModelSpec, x: Tensor) -> Tensor:
    if model.logits is not None:
        return model.logits(t, x)
    return t.call(model.head_path, model.head, model.transform(t, x) if model.transform else x)  # type: ignore[no-any-return]


def _play_run(
    timeline: Timeline,
    run: BlockRun,
    first: int,
    step: StepSpec,
    passed: list[Tensor],
    handed: list[Any],
    standing: dict[tuple[int, bool, bool, DType], int],
) -> Tensor:
    """Play the run's blocks that no play stands for yet; `standing` has a play by block and by what comes in.

    `first` counts the blocks before the run; `passed` holds the hidden states and `handed` what
    blocks are given, which one may replace.
    """
    t, plays = timeline.player, timeline.plays
    left = run.count
    x = passed.pop()
    while left:
        had_grad = x.edge is not None
        key = (id(run.block), had_grad, run.apart, x.dtype)
        alike = standing.get(key)
        if alike is not None:
            plays[alike].count += left
            timeline.order.append((alike, left))
            break
        name = f"{run.path}.{run.first_index + run.count - left}"
        t.mark(name)
        t.nodes.append(name + " backward done")
        t.layer = first + run.count - left
        plays.append(Play(name, t.layer, 1, forward_segment=len(t.segments) - 1))
        timeline.order.append((len(plays) - 1, 1))
        forward = partial(_call_block, t, name, run, run.block.takes(handed[0]))
        out = t.checkpoint(forward, x) if step.checkpointing else forward(x)
        if out.__class__ is tuple:
            out, handed[0] = out
        x = out
        del out, forward
        left -= 1
        # The next ones are like this one, unless gradients only begin here, or what came in is the
        # embeddings, which outlive this block where a checkpoint would keep them anyway, or no block
        # before it had returned its attention weights.
        held_before = (step.checkpointing and not t.handed_back) or len(plays) > 1
        if had_grad == (x.edge is not None) and held_before:
            standing[key] = len(plays) - 1
    return x


def _call_block(t: Player, name: str, run: BlockRun, given: Any, x: Tensor) -> Any:
    try:
        return t.call(name, run.block, x, given)
    finally:
        t.block_weights.clear()
