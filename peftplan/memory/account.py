"""From a played step to an account: moments, the peak and its owner, and a breakdown that sums to it."""

from __future__ import annotations

from dataclasses import dataclass

from peftplan.breakdown import Node, branch, leaf
from peftplan.memory.generated import Generated
from peftplan.memory.graph import PASSING, Record
from peftplan.memory.overheads import NUM_WORKSPACES, all_workspaces_bytes
from peftplan.memory.passing import UPDATE
from peftplan.memory.resident import Resident, Tally, tally_resident
from peftplan.memory.timeline import Moment, Play, Timeline
from peftplan.parallel.data_parallel import gradient_buckets
from peftplan.specs.formats import BLOCK_BYTES
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec

PEAK_MOMENTS = ("generation", "forward", "loss", "backward", "optimizer_step")
_LARGEST_SHOWN = 12
_KINDS = {
    "input": "inputs",
    "activation": "activations",
    "recomputed activation": "recomputed activations",
    "temporary": "temporaries",
    UPDATE: "optimizer step temporaries",
    "kernel workspace": "kernel workspaces",
}
_OF_A_KERNEL = " workspace"  # how the operations of buffers end that a kernel takes and gives back


Kind = tuple[str, str, str, tuple[int, ...]]  # module's place, operation, type, shape
AliveKinds = dict[str, dict[Kind, list[int]]]  # by part of the breakdown: how many, and their bytes together


@dataclass(slots=True)
class Account:
    """A step's memory on one device, in bytes."""

    resident: Resident
    timeline: Timeline
    step: StepSpec
    moments: dict[str, int]
    peak_moment: str
    activations_bytes: int
    generated: Generated | None = None
    _breakdown: Node | None = None

    @property
    def breakdown(self) -> Node:
        """The parts of the peak, which sum to it."""
        if self._breakdown is None:
            self._breakdown = _breakdown(self)
        return self._breakdown

    @property
    def peak_allocated_bytes(self) -> int:
        """The largest sum of live blocks after the allocator's rounding."""
        return self.moments[self.peak_moment]


def standing(model: ModelSpec, step: StepSpec) -> Resident:
    """All state of a model that has been played, whatever its batch and length."""
    resident = tally_resident(model, step)
    if step.data_parallel:
        resident.buckets.add("copies of the gradients", gradient_buckets(model), 1)
    return resident


def account_of(
    timeline: Timeline, resident: Resident, step: StepSpec, generated: Generated | None = None
) -> Account:
    """The account of a step that has been played, and of what is generated before it."""
    workspaces = all_workspaces_bytes(step.compute_capability)
    bare = base = resident.allocated + workspaces
    if step.accumulating:
        base += resident.gradients.allocated
    phases = timeline.phases
    before = {} if generated is None else {"generation": bare + generated.peak_bytes}
    moments = {
        "loaded": resident.loaded_allocated,
        **before,
        "forward": base + phases["forward"].bytes,
        "forward_end": base + timeline.forward_end_bytes,
        "loss": base + phases["loss"].bytes,
        "backward": base + phases["backward"].bytes,
        "optimizer_step": base + timeline.end_bytes + _step_bytes(resident, step),
    }
    peak = max((name for name in PEAK_MOMENTS if name in moments), key=lambda name: moments[name])
    activations = timeline.forward_end_requested - timeline.inputs_requested
    return Account(resident, timeline, step, moments, peak, activations, generated)


def _update_bytes(resident: Resident, step: StepSpec) -> int:
    """What the optimizer's update adds to the level it finds."""
    added = resident.step_temporary.allocated - resident.step_gone.allocated
    if step.master_weights:
        added -= resident.gradients.allocated  # freed as they are cast
    return added


def _clips(resident: Resident, step: StepSpec) -> bool:
    """Whether clipping the gradients, before the update, holds more than the update does."""
    return step.trainer and resident.clip_bytes > _update_bytes(resident, step)


def _step_bytes(resident: Resident, step: StepSpec) -> int:
    """What the optimizer step adds to the level it finds."""
    return resident.clip_bytes if _clips(resident, step) else _update_bytes(resident, step)


def _breakdown(account: Account) -> Node:
    resident, timeline, step, peak = account.resident, account.timeline, account.step, account.peak_moment
    workspaces, total = all_workspaces_bytes(step.compute_capability), account.peak_allocated_bytes
    optimizing = peak == "optimizer_step"
    clipping = optimizing and _clips(resident, step)
    replaced = optimizing and step.master_weights and not clipping  # gradients, by fp32 copies
    generating = account.generated is not None and peak == "generation"
    groups = {} if generating else _alive(timeline, _peak_of(timeline, peak))
    nodes = [
        _state("weights", resident.weights),
        _state("adapters", resident.adapters),
        _state("master weights", resident.master_weights),
        _state("optimizer states", resident.optimizer_states),
    ]
    if resident.buckets.requested:
        size = resident.buckets.requested
        nodes.append(leaf("gradient buckets", size, "what GPUs sum gradients in", "torch-ddp"))
    if generating:
        nodes += _generation(account)
    elif step.accumulating and not replaced:
        nodes.append(_state("gradients", resident.gradients))
    elif not replaced:
        alive = sum(groups[kind].requested for kind in ("gradient", PASSING) if kind in groups)
        if optimizing and not clipping:
            alive -= resident.step_gone.requested
        nodes.append(leaf("gradients", alive, "alive at the peak"))
    for kind in ("gradient", PASSING):
        groups.pop(kind, None)
    for kind, name in _KINDS.items():
        if kind in groups:
            nodes.append(groups[kind].node(name))
    if clipping:
        nodes.append(
            leaf("gradient clipping", resident.clip_bytes, "norms and their partial sums", "torch-foreach")
        )
    elif optimizing:
        nodes.append(_state("optimizer step temporaries", resident.step_temporary))
    nodes.append(leaf("cuBLAS workspaces", workspaces, f"{NUM_WORKSPACES} handles", "cublas-workspace"))
    known = sum(node.bytes for node in nodes)
    nodes.append(
        leaf(
            "allocator rounding",
            total - known,
            f"every tensor rounded up to {BLOCK_BYTES} bytes",
            "torch-allocator",
        )
    )
    return branch("peak allocated", nodes)


def _generation(account: Account) -> list[Node]:
    """Keys and values, and the pass beside them."""
    made = account.generated
    assert made is not None
    cache, played = made.parts
    text = f"{made.rows} sequences of up to {made.prompt + made.new} tokens"
    return [
        leaf("keys and values", cache, text, "transformers-cache"),
        leaf("a pass of generation", played, "over all prompts, or a token of each", "transformers-generate"),
    ]


def peak_tensors(account: Account) -> AliveKinds:
    """What is alive at the peak beside the standing state, by part of the breakdown."""
    if account.peak_moment == "generation":
        return {}
    groups = _alive(account.timeline, _peak_of(account.timeline, account.peak_moment))
    names = {**_KINDS, "gradient": "gradients", PASSING: "gradients"}
    found: AliveKinds = {}
    for kind, group in groups.items():
        found.setdefault(names.get(kind, kind), {}).update(group.items)
    return found


def _peak_of(timeline: Timeline, phase: str) -> Moment:
    """Where a phase is at its highest; the optimizer step begins where the tape ends."""
    if phase == "optimizer_step":
        return Moment(0, timeline.end_clock, timeline.end_copies)
    return timeline.phases[phase]


def _state(name: str, tally: Tally) -> Node:
    return branch(name, [leaf(kind, size) for kind, size in tally.parts.items()])


class _Group:
    """Live tensors of one kind, alike ones added up."""

    def __init__(self) -> None:
        self.requested = 0
        self.items: dict[Kind, list[int]] = {}

    def add(self, record: Record, copies: int) -> None:
        self.requested += record.nbytes * copies
        key = (_place(record.module), record.op, record.dtype.name, record.shape)
        item = self.items.setdefault(key, [0, 0])
        item[0] += copies
        item[1] += record.nbytes * copies

    def node(self, name: str) -> Node:
        ranked = sorted(self.items.items(), key=lambda item: -item[1][1])
        shown = [
            leaf(
                f"{place or 'outside the blocks'}: {op}",
                size,
                f"{count} x {dtype}[{', '.join(map(str, shape))}]",
            )
            for (place, op, dtype, shape), (count, size) in ranked[:_LARGEST_SHOWN]
        ]
        rest = sum(size for _, (_, size) in ranked[_LARGEST_SHOWN:])
        if rest:
            shown.append(leaf(f"{len(ranked) - _LARGEST_SHOWN} smaller kinds", rest))
        return branch(name, shown)


def _place(module: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in module.split("."))


def _alive(timeline: Timeline, moment: Moment) -> dict[str, _Group]:
    """Tensors alive at a moment, those of the copied blocks multiplied, by kind."""
    groups: dict[str, _Group] = {}
    clock = moment.clock
    for record in timeline.records:
        if record.born <= clock and (not record.died or record.died > clock):
            kind = "kernel workspace" if record.op.endswith(_OF_A_KERNEL) else record.kind
            groups.setdefault(kind, _Group()).add(record, 1)
    for play, (saved, done) in zip(timeline.plays, moment.copies):
        if saved:
            group = groups.setdefault("activation", _Group())
            for record in _kept(timeline, play):
                group.add(record, saved)
        if done:
            group = groups.setdefault("gradient", _Group())
            start, end = timeline.backward_clocks[play.name]
            for record in timeline.records:
                if record.kind == "gradient" and start < record.born <= end:
                    group.add(record, done)
    return groups


def _kept(timeline: Timeline, play: Play) -> list[Record]:
    """What one block's forward leaves for backward; the block's output stands for its checkpoint."""
    segment, following = timeline.player.segments[play.forward_segment : play.forward_segment + 2]
    start, end = segment.start_clock, following.start_clock
    cleared, until = timeline.player.clear_clock, timeline.forward_end_clock
    born = [
        r
        for r in timeline.records
        if start < r.born <= end and (not r.died or r.died > end) and not (cleared and cleared < r.died <= until)
    ]
    lasting = [r for r in born if not r.died or r.died > until]
    # A checkpointed block leaves its output, the next one's input, which the last block's does not outlive.
    gained = segment.end_bytes - segment.start_bytes - timeline.player.cleared.get(play.layer, (0, 0))[0]
    if born and sum(r.size for r in lasting) + born[-1].size == gained:
        lasting.append(born[-1])
    return lasting
