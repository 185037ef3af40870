"""Play one training step and read its timeline: segments, repeated blocks multiplied, phases.

Blocks that are alike - of one run, or of several runs that share a block - are played once and that play
stands for all; `timeline` reads the whole model's levels from it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from peftplan.errors import BadInput
from peftplan.memory.player import Player
from peftplan.memory.timeline import AUTOCAST_LEFT, Play, Timeline, read_timeline
from peftplan.specs.formats import FP32, INT64, UINT8, DType, allocated_bytes
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Linear
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Tensor

# A mark: the model's forward has given its loss, and what held that of the micro-step before is gone.
FORWARD_END = "forward end"
# Stands for all that the loss of the micro-step before holds.
EARLIER = "held by the loss of the micro-batch before"


def play_step(model: ModelSpec, step: StepSpec, each: bool = False) -> Timeline:
    """Play forward, loss and backward of one micro-step, optimizer state already there; `each` block by itself."""
    left = 0
    if leaves_a_loss(step):
        left = held_by_the_loss(model, play_step(model, replace(step, accumulating=False)))
    timeline, end_segment = run_step(Player(step.accumulating), model, step, left, each)
    read_timeline(timeline, end_segment)
    return timeline


def run_step(t: Player, model: ModelSpec, step: StepSpec, left: int, each: bool = False) -> tuple[Timeline, int]:
    """The step on this tape, not yet read, and the segment that opens at the end of forward.

    `left`: bytes that the loss of the micro-step before holds, in a loop that keeps it until the next one is there.
    """
    ids, labels, beside = _start(t, model, step)
    each = each or model.plays_each
    if step.checkpointing and model.not_checkpointed:
        raise BadInput(model.not_checkpointed)
    t.kind = "activation"
    earlier = None
    if leaves_a_loss(step):
        earlier = t.new((left,), left, UINT8, EARLIER)
    t.shared = _shared_weights(model)
    # gradient_checkpointing_enable makes the token embeddings ask for a gradient, frozen or not; where it does
    # not, reentrant checkpoints need it done by hand
    asks = model.behaviour.embeddings_ask_gradient or step.use_reentrant
    t.leaf_ids = ids if step.checkpointing and asks else None
    timeline = Timeline(t, [])
    loss, logits = _forward(timeline, model, step, ids, labels, each)
    del earlier
    t.mark(FORWARD_END)
    timeline.forward_end_clock = t.clock
    end_segment = len(t.segments) - 1
    if not step.keep_outputs:
        del logits
        t.returned.clear()
        t.cached.clear()
    t.kind = "temporary"
    if step.trainer:
        whole = t.mul_scalar(loss, "div")  # by accelerate's number of accumulation steps, one
        t.start_backward(whole)
        del whole
        beside.pop()  # the loss before it
        loss.edge = None  # detached, it stays until the next one is there
        t.leaves.clear()
        t.held.clear()
        t.graph_gone = True
    else:
        t.start_backward(loss)
    t.mark("end")
    timeline.end_clock = t.clock
    for record in t.records:
        if record.kind == "input":
            timeline.inputs_requested += record.nbytes
            timeline.inputs_bytes += record.size
    del ids, labels, beside, loss
    return timeline, end_segment


def _start(t: Player, model: ModelSpec, step: StepSpec) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Settle how attention runs and make the batch: token ids, labels, and what else the loop holds.

    Trainer has labels of their own, and all micro-batches of a step; beside them the running total of losses,
    the last gradient norm, the number of tokens, by which the loss is divided, and the loss before this one.
    Source: transformers-trainer.
    """
    _choose_attention(t, model, step)
    shape, numel = (step.micro_batch, step.seq_len), step.micro_batch * step.seq_len
    ids, beside = t.new(shape, numel, INT64, "input ids"), [t.new(shape, numel, INT64, "attention mask")]
    if not step.trainer:
        return ids, ids, beside
    labels = t.new(shape, numel, INT64, "labels")
    for _ in range(step.num_batches - 1):
        beside += [t.new(shape, numel, INT64, name) for name in ("input ids", "attention mask", "labels")]
    t.num_tokens = t.new((), 1, FP32, "number of tokens")
    beside += [t.new((), 1, FP32, name) for name in ("total loss", "gradient norm", "earlier loss")]
    return ids, labels, beside


def leaves_a_loss(step: StepSpec) -> bool:
    """Whether a micro-step finds the loss of the one before, and what that loss holds."""
    return step.accumulating and not step.trainer


def held_by_the_loss(model: ModelSpec, played: Timeline) -> int:
    """What stays of a micro-step until the next loss is there: neither gradients nor the batch, rounded bytes."""
    gradients = sum(allocated_bytes(p.num_bytes()) * n for _, p, n in model.parameters() if p.edge is not None)
    return played.end_bytes - gradients - played.inputs_bytes


def _choose_attention(t: Player, model: ModelSpec, step: StepSpec) -> None:
    """The attention implementation: the one asked for, or eager where the family has no other."""
    t.compute_capability, t.padding, t.behaviour = step.compute_capability, step.padding, model.behaviour
    if step.loss != "standard" and model.encoder:
        raise BadInput(
            f"--loss {step.loss} is made for causal language models, and {model.family} is none; "
            "take --loss standard"
        )
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
    run_evaluation(t, model, step)
    return max(segment.peak_bytes for segment in t.segments)


def run_evaluation(t: Player, model: ModelSpec, step: StepSpec) -> None:
    """The forward pass on this tape."""
    ids, labels, beside = _start(t, model, step)
    t.training = False
    with t.no_grad():
        loss, logits = _forward(Timeline(t, []), model, step, ids, labels)
    t.mark("end")
    del ids, labels, beside, loss, logits


def _forward(
    timeline: Timeline, model: ModelSpec, step: StepSpec, ids: Tensor, labels: Tensor, each: bool = False
) -> tuple[Tensor, Any]:
    t = timeline.player
    standing: dict[tuple[int, bool, bool, DType], int] = {}
    with t.autocasting(step.autocast):
        if model.relabel is not None:
            labels = model.relabel(t, labels)
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
            passed.append(_play_run(timeline, run, first, step, passed, handed, None if each else standing))
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
        if logits is not None and model.scale_logits is not None:
            made = [logits]
            del logits  # it ends while it is scaled
            logits = model.scale_logits(t, made)
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
        del x
        if model.relabel is not None:
            del labels
        t.kept_to_loss.clear()
        t.put_before([], 0)
        if model.behind_loss is not None:
            loss = model.behind_loss(t, loss)
    if step.trainer and step.autocast is not None and logits is not None:
        # accelerate's convert_outputs_to_fp32 wraps the model's forward, autocast and all
        t.mark(AUTOCAST_LEFT)
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
    standing: dict[tuple[int, bool, bool, DType], int] | None,
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
        alike = None if standing is None else standing.get(key)
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
        out = _run_block(t, step, name, run, run.block.takes(handed[0]), x)
        if out.__class__ is tuple:
            out, handed[0] = out
        x = out
        del out
        left -= 1
        # The next ones are like this one, unless gradients only begin here, or what came in is the
        # embeddings, which outlive this block where a checkpoint would keep them anyway, or no block
        # before it had returned its attention weights.
        held_before = (step.checkpointing and not t.handed_back) or len(plays) > 1
        if standing is not None and had_grad == (x.edge is not None) and held_before:
            standing[key] = len(plays) - 1
    return x


def _run_block(t: Player, step: StepSpec, name: str, run: BlockRun, given: Any, x: Tensor) -> Any:
    forward = partial(_call_block, t, name, run)
    if not step.checkpointing or not t.training:
        return forward(given, x)
    if step.use_reentrant:
        return t.checkpoint_reentrant(forward, run.block, given, x)
    return t.checkpoint(partial(forward, given), x)


def _call_block(t: Player, name: str, run: BlockRun, given: Any, x: Tensor) -> Any:
    try:
        return t.call(name, run.block, x, given)
    finally:
        t.block_weights.clear()
