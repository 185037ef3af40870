"""Play one training step and read its timeline: segments, repeated blocks multiplied, phases.

Blocks of a run are alike, so one is played and stands for all: in forward each adds the same bytes, in
backward each frees them and adds its gradients. A segment's peak over all its copies is therefore at the
first or at the last of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from peftplan.memory.player import Player
from peftplan.memory.tape import Record
from peftplan.specs.formats import FP32, INT64
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Tensor


@dataclass(slots=True)
class Play:
    """One block played for `count` alike."""

    name: str
    layer: int
    count: int
    forward_segment: int = 0
    backward_segment: int = 0


@dataclass(slots=True)
class Moment:
    """The highest level of a phase: where it is on the tape and how far the copied blocks have come."""

    bytes: int = 0
    clock: int = 0
    # per play: (copies whose saved tensors are alive, copies whose gradients are there)
    copies: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True)
class Timeline:
    """A played step. Levels count the allocator's rounded bytes above the resident state."""

    player: Player
    plays: list[Play]
    phases: dict[str, Moment] = field(default_factory=dict)
    forward_end_bytes: int = 0  # rounded
    forward_end_requested: int = 0
    loss_forward_bytes: int = 0  # rounded, the most while the loss is computed
    end_bytes: int = 0  # rounded, gradients included
    forward_end_clock: int = 0
    records: list[Record] = field(default_factory=list)


def play_step(model: ModelSpec, step: StepSpec) -> Timeline:
    """Play forward, loss and backward of one micro-step, optimizer state already there."""
    t = Player(step.accumulating)
    t.attention, t.compute_capability = step.attention, step.compute_capability
    shape, numel = (step.micro_batch, step.seq_len), step.micro_batch * step.seq_len
    ids = t.new(shape, numel, INT64, "input ids")
    mask = t.new(shape, numel, INT64, "attention mask")
    t.kind = "activation"
    plays, loss, logits = _forward(t, model, step, ids)
    t.mark("forward end")
    timeline = Timeline(t, plays)
    timeline.forward_end_clock = t.clock
    end_segment = len(t.segments) - 1
    del logits
    t.kind = "temporary"
    t.start_backward(loss)
    t.mark("end")
    _read(timeline, end_segment)
    timeline.records = list(t.records)
    del ids, mask, loss
    return timeline


def _forward(t: Player, model: ModelSpec, step: StepSpec, ids: Tensor) -> tuple[list[Play], Tensor, Any]:
    plays: list[Play] = []
    with t.autocasting(step.autocast):
        x, given = model.enter(t, ids)
        entered = x  # the model's forward holds the embeddings until it returns
        for run in model.runs:
            x = _play_run(t, run, step, x, given, plays)
        t.mark("head")
        t.nodes.append("head backward done")
        t.layer = -1
        x = model.leave(t, x)
        del entered, given
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
    return plays, loss, logits


def _play_run(
    t: Player, run: BlockRun, step: StepSpec, x: Tensor, given: Any, plays: list[Play]
) -> Tensor:
    left = run.count
    while left:
        index = run.first_index + run.count - left
        had_grad = x.edge is not None
        name = f"{run.path}.{index}"
        t.mark(name)
        t.nodes.append(name + " backward done")
        t.layer = index
        play = Play(name, index, 1, forward_segment=len(t.segments) - 1)
        forward = partial(_call_block, t, name, run, given)
        x = t.checkpoint(forward, x) if step.checkpointing else forward(x)
        plays.append(play)
        left -= 1
        # The next ones are like this one, unless gradients only begin here, or what came in is the
        # embeddings, which outlive this block where a checkpoint would keep them anyway.
        alike = had_grad == (x.edge is not None) and (step.checkpointing or len(plays) > 1)
        if left and alike:
            play.count += left
            left = 0
    return x


def _call_block(t: Player, name: str, run: BlockRun, given: Any, x: Tensor) -> Tensor:
    return t.call(name, run.block, x, given)  # type: ignore[no-any-return]


def _read(timeline: Timeline, end_segment: int) -> None:
    """Phase peaks over all copies of the played blocks."""
    segments, plays = timeline.player.segments, timeline.plays
    phases = {name: Moment() for name in ("forward", "loss", "backward")}
    extra = 0
    requested = 0
    freed = [0] * len(plays)  # what one copy gives back in backward
    saved = [0] * len(plays)  # further copies of a play whose saved tensors are alive
    done = [0] * len(plays)  # further copies whose gradients are there

    def consider(phase: str, level: int, clock: int) -> None:
        if level > phases[phase].bytes:
            phases[phase] = Moment(level, clock, tuple(zip(saved, done)))

    by_forward = {play.forward_segment: i for i, play in enumerate(plays)}
    for number in range(end_segment):
        segment = segments[number]
        i = by_forward.get(number)
        if i is not None and plays[i].count > 1:
            delta = segment.end_bytes - segment.start_bytes
            saved[i] = plays[i].count - 1
            held = segment.end_held_bytes - segments[number - 1].end_held_bytes
            cleared = timeline.player.cleared.get(plays[i].layer, (0, 0))[0]
            freed[i] = delta - held - cleared
            extra += saved[i] * delta
            requested += saved[i] * (segment.end_requested - segment.start_requested)
        phase = "loss" if segment.name == "loss" else "forward"
        consider(phase, segment.peak_bytes + extra, segment.peak_clock)
    timeline.loss_forward_bytes = phases["loss"].bytes
    # the autocast cache is dropped at the end of forward, for every block at once
    for play in plays:
        size, nbytes = timeline.player.cleared.get(play.layer, (0, 0))
        extra -= (play.count - 1) * size
        requested -= (play.count - 1) * nbytes
    timeline.forward_end_bytes = segments[end_segment].start_bytes + extra
    timeline.forward_end_requested = segments[end_segment].start_requested + requested

    # backward: what is opened at the end of forward runs to the log-softmax, then the head, then blocks
    number = end_segment
    consider("loss", segments[number].peak_bytes + extra, segments[number].peak_clock)
    by_name = {play.name + " backward done": i for i, play in enumerate(plays)}
    for number in range(end_segment + 1, len(segments) - 1):
        segment = segments[number]
        i = by_name.get(segments[number + 1].name)
        if i is None or plays[i].count == 1:
            consider("backward", segment.peak_bytes + extra, segment.peak_clock)
            continue
        copies = plays[i].count - 1
        # not the change of level: the last block also frees what all blocks share (rotary tables)
        gained = segment.end_gradient_bytes - segments[number - 1].end_gradient_bytes
        delta = gained - freed[i]
        consider("backward", segment.peak_bytes + extra, segment.peak_clock)
        extra += copies * delta
        saved[i], done[i] = 0, copies
        consider("backward", segment.peak_bytes + extra, segment.peak_clock)
    timeline.end_bytes = segments[-1].start_bytes + extra
    timeline.phases = phases
