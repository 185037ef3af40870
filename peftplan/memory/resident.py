"""State that lives from step to step: weights, adapters, gradients, masters, optimizer states.

Each figure comes twice: requested bytes, which `resident` reports, and the bytes the allocator counts,
which levels are made of (every tensor rounded up to 512).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from peftplan.memory.trained import Trained, by_type, in_order, loop_records, trained_tensors
from peftplan.memory.workspaces.reductions import foreach_norm_sizes
from peftplan.optimizers import Optimizer
from peftplan.specs.formats import BLOCK_BYTES, allocated_bytes
from peftplan.specs.model import ModelSpec
from peftplan.specs.tensors import Parameter


@dataclass(slots=True)
class Tally:
    """A sum of tensors: requested bytes, and bytes after the allocator's rounding."""

    requested: int = 0
    allocated: int = 0
    parts: dict[str, int] = field(default_factory=dict)  # requested, by kind of tensor

    def add(self, kind: str, sizes: Iterable[int], count: int) -> None:
        """Add tensors of these sizes, `count` times over."""
        total = 0
        for size in sizes:
            total += size
            self.allocated += allocated_bytes(size) * count
        self.requested += total * count
        self.parts[kind] = self.parts.get(kind, 0) + total * count


@dataclass(slots=True)
class Resident:
    """All state of one device, and what an optimizer step holds beside it."""

    weights: Tally
    adapters: Tally
    gradients: Tally
    master_weights: Tally
    optimizer_states: Tally
    step_temporary: Tally  # held at the worst point of the optimizer step
    loaded_allocated: int  # rounded bytes of weights and adapters before the first forward pass
    paged_bytes: int
    num_trainable: int
    clip_bytes: int  # the most that gradient clipping holds: norms, and what they are summed from
    num_adapter: int
    adapter_checkpoint_bytes: int
    buckets: Tally = field(default_factory=Tally)  # of gradients, where several GPUs share a step

    @property
    def allocated(self) -> int:
        """Rounded bytes of everything but gradients."""
        return (
            self.weights.allocated
            + self.adapters.allocated
            + self.master_weights.allocated
            + self.optimizer_states.allocated
            + self.buckets.allocated
        )


def tally_resident(model: ModelSpec, optimizer: Optimizer, master_weights: bool, trainer: bool = False) -> Resident:
    """Count every parameter of the model and what the optimizer keeps for those that train."""
    weights, adapters, gradients = Tally(), Tally(), Tally()
    masters, states, checkpoint, num_adapter = Tally(), Tally(), 0, 0
    stated = model.adapter_checkpoint_bytes
    loaded = 0
    for name, parameter, count in model.parameters():
        tally = adapters if parameter.role == "adapter" else weights
        kind = _kind(name, parameter)
        for storage, size in parameter.storages():
            tally.add(f"{kind}: {storage}", (size,), count)
        loaded += sum(allocated_bytes(size) for _, size in parameter.loaded_storages()) * count
        if parameter.edge is None:
            continue
        gradients.add(parameter.dtype.short, (parameter.num_bytes(),), count)
        if parameter.role == "adapter":
            checkpoint += parameter.num_bytes() * count
            num_adapter += parameter.numel * count
        if master_weights:
            masters.add("fp32", (4 * parameter.numel,), count)
    trained = trained_tensors(model, master_weights, trainer)
    for row in trained:
        states.add("states", row.states(optimizer), row.count)
    narrow = (row.parameter.numel for row in trained if not row.wide)
    states.add("tables", optimizer.tables(max(narrow, default=0)), 1)
    return Resident(
        weights=weights,
        adapters=adapters,
        gradients=gradients,
        master_weights=masters,
        optimizer_states=states,
        step_temporary=_step_temporary(model, trained, optimizer, master_weights),
        loaded_allocated=loaded,
        paged_bytes=sum(row.paged_bytes(optimizer) * row.count for row in trained),
        num_adapter=num_adapter,
        clip_bytes=_clip_bytes(trained),
        num_trainable=sum(row.parameter.numel * row.count for row in trained),
        adapter_checkpoint_bytes=checkpoint if stated is None else stated,
    )


def _kind(name: str, parameter: Parameter) -> str:
    if parameter.role == "buffer":
        return "buffers"
    if parameter.role == "adapter":
        return "adapters"
    if parameter.quant is not None:
        return f"{parameter.quant.kind} linears"
    return "norms and biases" if len(parameter.shape) == 1 else "matrices"


def _clip_bytes(trained: list[Trained]) -> int:
    """What clipping adds at its worst, rounded: a norm for each gradient, and partial sums of those of one type.

    Later the norms are joined, and theirs is taken; the one of the step before has gone by then.
    """
    norms = worst = 0
    for group in by_type(trained):
        tensors = sum(row.count for row in group)
        norms += tensors * BLOCK_BYTES
        sizes = foreach_norm_sizes(tensors, max(row.parameter.numel for row in group))
        worst = max(worst, norms + sum(allocated_bytes(size) for size in sizes))
    width = max((row.parameter.dtype.itemsize for row in trained), default=0)
    joined = allocated_bytes(norms // BLOCK_BYTES * width) + BLOCK_BYTES
    # of a single tensor the coefficient is more: the norm, that and a little, its reciprocal, the product
    return max(worst, norms + joined, 4 * BLOCK_BYTES) - BLOCK_BYTES


def _step_temporary(model: ModelSpec, trained: list[Trained], optimizer: Optimizer, master_weights: bool) -> Tally:
    """The most that the step holds at once: over the tensors of a type together (foreach), or in a loop.

    Assumes with master weights: fp32 copies of all gradients replace the 16-bit ones before the step, as
    Megatron-LM's and apex's 16-bit optimizers do without a fused kernel.
    """
    looped = Tally()
    for record in loop_records(model, optimizer, trained):
        looped.add(record.op, (record.nbytes,), 1)
    worst = max([looped, *_foreach_temporaries(trained, optimizer)], key=lambda tally: tally.allocated)
    if master_weights:
        for row in trained:
            worst.add("fp32 gradients", (4 * row.parameter.numel,), row.count)
        worst = max(worst, _casting(model), key=lambda tally: tally.allocated)
    return worst


def _casting(model: ModelSpec) -> Tally:
    """Gradients where one after another is cast to fp32 and then freed: both forms, at the worst."""
    order = [(p.num_bytes(), 4 * p.numel, n) for p, n in in_order(model)]
    left = sum(allocated_bytes(narrow) * count for narrow, _, count in order)
    worst, done = (0, 0), 0
    for number, (narrow, wide, count) in enumerate(order):
        done += allocated_bytes(wide) * count
        worst = max(worst, (done + left - allocated_bytes(narrow) * (count - 1), number))
        left -= allocated_bytes(narrow) * count
    tally, last = Tally(), worst[1]
    for _, wide, count in order[: last + 1]:
        tally.add("fp32 gradients", (wide,), count)
    tally.add("gradients before their cast", (order[last][0],), 1)
    for narrow, _, count in order[last + 1 :]:
        tally.add("gradients before their cast", (narrow,), count)
    return tally


def _foreach_temporaries(trained: list[Trained], optimizer: Optimizer) -> list[Tally]:
    """What each type's turn holds: its own copies, and those of the type before, until it has made its own.

    Groups of parameters (Trainer has two) are calls of their own. Source: torch-adamw.
    """
    turns = []
    for decayed in (True, False):
        before: list[Trained] = []
        for group in by_type([row for row in trained if row.decayed is decayed]):
            turn = Tally()
            for row in (*before, *group):
                size = optimizer.step_all(row.parameter.numel, row.dtype)
                turn.add("copy of the second moment", (size,), row.count)
            before = group
            turns.append(turn)
    return turns
