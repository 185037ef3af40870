"""Play one training step and read its timeline: a style's passes, backward, and what the loop around them holds.

Blocks that are alike - of one run, or of several runs that share a block - are played once and that play
stands for all; `timeline` reads the whole model's levels from it.
"""

from __future__ import annotations

from dataclasses import replace

from peftplan.errors import BadInput
from peftplan.memory.passes import Passes
from peftplan.memory.passing import Passing
from peftplan.memory.player import Player
from peftplan.memory.styles import STYLES
from peftplan.memory.timeline import Timeline, read_timeline
from peftplan.optimizers.chosen import chosen
from peftplan.specs.formats import INT64, UINT8, allocated_bytes
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear
from peftplan.specs.run import StepSpec
from peftplan.specs.style import NEXT_TOKEN
from peftplan.specs.tensors import Tensor

# A mark: the model's forward has given its loss, and what held that of the micro-step before is gone.
FORWARD_END = "forward end"
# Stands for all that the loss of the micro-step before holds.
EARLIER = "held by the loss of the micro-batch before"
_NO_POSITIONS = (
    "--padding-free tells sequences apart by their positions, and {} is handed none here; take a decoder with "
    "rotary or learned positions, or leave it out"
)


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
    _check(model, step)
    style = STYLES[step.style.name]
    _choose_attention(t, model, step)
    batch = style.batch(t, step)
    if model.names_tasks:
        batch.beside.insert(0, t.new((step.micro_batch,), step.micro_batch, INT64, "task ids"))
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
    t.leaf_ids = batch.ids if step.checkpointing and asks else None
    timeline = Timeline(t, [])
    loss, logits = style.loss(Passes(timeline, model, step, each), batch)
    del earlier
    if step.padding_free and not (t.positions_read and (model.hands_positions or t.attention != "flash")):
        raise BadInput(_NO_POSITIONS.format(model.family))
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
        _run_backward(t, model, step, whole)
        del whole
        batch.beside.pop()  # the loss before it
        loss.edge = None  # detached, it stays until the next one is there
        t.leaves.clear()
        t.held.clear()
        t.graph_gone = True
    else:
        _run_backward(t, model, step, loss)
    t.mark("end")
    timeline.end_clock = t.clock
    for record in t.records:
        if record.kind == "input":
            timeline.inputs_requested += record.nbytes
            timeline.inputs_bytes += record.size
    t.positions = None
    del batch, loss
    return timeline, end_segment


def _run_backward(t: Player, model: ModelSpec, step: StepSpec, loss: Tensor) -> None:
    """Backward from the loss, and what is done with gradients as they come."""
    passing = Passing(t, model, step)
    t.passing = passing if passing.rows else None
    scaled = t.mul_scalar(loss) if chosen(step).row.scales_loss else loss
    t.start_backward(scaled)
    passing.finish()
    t.passing = None


def leaves_a_loss(step: StepSpec) -> bool:
    """Whether a micro-step finds the loss of the one before, and what that loss holds."""
    return step.accumulating and not step.trainer


def held_by_the_loss(model: ModelSpec, played: Timeline) -> int:
    """What stays of a micro-step until the next loss is there: neither gradients nor the batch, rounded bytes."""
    gradients = sum(allocated_bytes(p.gradient_bytes()) * n for _, p, n in model.parameters() if p.edge is not None)
    return played.end_bytes - gradients - played.inputs_bytes


def _check(model: ModelSpec, step: StepSpec) -> None:
    """Refuse what no library does, or what is played for next-token prediction alone."""
    if STYLES[step.style.name].causal and model.encoder:
        raise BadInput(
            f"--style {step.style.name} is made for causal language models, and {model.family} is none; take "
            "another model or style"
        )
    if model.second_loss is not None and step.loss != "standard":
        raise BadInput(
            f"--loss {step.loss}: this method computes a second loss from whole logits; take --loss standard"
        )
    virtual = model.relabel is not None or model.virtual_tokens
    if virtual and (step.style.name != NEXT_TOKEN or step.padding_free):
        asked = "--padding-free" if step.padding_free else f"--style {step.style.name}"
        raise BadInput(
            f"{asked}: the closed form plays peft's virtual tokens for whole sequences and the next token alone; "
            "take --engine trace, or another method"
        )
    if step.padding_free and model.behaviour.float_masks:
        raise BadInput(
            "--padding-free: transformers tells sequences apart by their positions from 4.53 on; leave it out, or "
            "take a later --transformers"
        )


def _choose_attention(t: Player, model: ModelSpec, step: StepSpec) -> None:
    """The attention implementation: the one asked for, or eager where the family has no other."""
    t.compute_capability, t.padding, t.behaviour = step.compute_capability, step.padding, model.behaviour
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
    style = STYLES[step.style.name]
    _choose_attention(t, model, step)
    batch = style.batch(t, step)
    t.training = False
    with t.no_grad():
        loss, logits = style.loss(Passes(Timeline(t, []), model, step), batch)
    t.mark("end")
    del batch, loss, logits
