"""State that lives from step to step: weights, adapters, gradients, masters, optimizer states.

Each figure comes twice: requested bytes, which `resident` reports, and the bytes the allocator counts,
which levels are made of (every tensor rounded up to 512).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from peftplan.memory.trained import Trained, by_type, in_groups, in_order, loop_records, own, trained_tensors
from peftplan.memory.workspaces.reductions import foreach_norm_sizes
from peftplan.optimizers.chosen import Chosen, chosen
from peftplan.optimizers.row import Optimizer
from peftplan.specs.formats import BLOCK_BYTES, allocated_bytes
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec
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
    step_gone: Tally  # of gradients and weights, what has been let go by then
    loaded_allocated: int  # rounded bytes of weights and adapters before the first forward pass
    paged_bytes: int
    host: Tally  # what the optimizer keeps in the host's memory
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


def tally_resident(model: ModelSpec, step: StepSpec) -> Resident:
    """Count every parameter of the model and what the optimizer keeps for those that train."""
    weights, adapters, gradients = Tally(), Tally(), Tally()
    masters, states, host, checkpoint, num_adapter = Tally(), Tally(), Tally(), 0, 0
    optimizer, trained = chosen(step), trained_tensors(model, step)
    kept = {id(row.parameter) for row in trained if optimizer.keeps_gradient(row.weight)}
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
        if id(parameter) in kept:
            gradients.add(parameter.dtype.short, (parameter.gradient_bytes(),), count)
        if parameter.role == "adapter":
            checkpoint += parameter.num_bytes() * count
            num_adapter += parameter.numel * count
        if step.master_weights:
            masters.add("fp32", (4 * parameter.numel,), count)
    for row in trained:
        for name, size in optimizer.states(row.weight):
            states.add(name, (size,), row.count)
        for name, size in optimizer.host(row.weight):
            host.add(name, (size,), row.count)
    for size, count in optimizer.tables_of([(row.weight, row.count) for row in trained]):
        states.add("code tables", (size,), count)
    step_temporary, step_gone = _step_temporary(model, trained, optimizer, step.master_weights)
    return Resident(
        weights=weights,
        adapters=adapters,
        gradients=gradients,
        master_weights=masters,
        optimizer_states=states,
        step_temporary=step_temporary,
        step_gone=step_gone,
        loaded_allocated=loaded,
        paged_bytes=sum(size * row.count for row in trained for _, size in optimizer.paged(row.weight)),
        host=host,
        num_adapter=num_adapter,
        clip_bytes=_clip_bytes([row for row in trained if id(row.parameter) in kept]),
        num_trainable=sum(row.parameter.numel * row.count for row in trained),
        adapter_checkpoint_bytes=checkpoint if stated is None else stated,
    )


def _kind(name: str, parameter: Parameter) -> str:
    if name.startswith("reference."):
        return "reference model"
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
    if not trained:
        return 0
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


def _step_temporary(
    model: ModelSpec, trained: list[Trained], optimizer: Chosen, master_weights: bool
) -> tuple[Tally, Tally]:
    """The most that the step holds at once, of the tensors of a type together (foreach) or in a loop; what is gone.

    Assumes with master weights: fp32 copies of all gradients replace the 16-bit ones before the step, as
    Megatron-LM's and apex's 16-bit optimizers do without a fused kernel.
    """
    if optimizer.in_backward:
        return Tally(), Tally()
    turns = [(Tally(), Tally())]
    for rule in optimizer.rules:
        looped, gone = Tally(), Tally()
        alive, let_go = loop_records(model, optimizer, trained, rule)
        for record in alive:
            looped.add(record.op, (record.nbytes,), 1)
        gone.add("let go", let_go, 1)
        turns.append((looped, gone))
        turns += [(turn, Tally()) for turn in _foreach_temporaries(trained, optimizer, rule)]
    worst, gone = max(turns, key=lambda turn: turn[0].allocated - turn[1].allocated)
    if master_weights:
        for row in trained:
            worst.add("fp32 gradients", (4 * row.parameter.numel,), row.count)
        worst = max(worst, _casting(model), key=lambda tally: tally.allocated)
    return worst, gone


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


def _foreach_temporaries(trained: list[Trained], optimizer: Chosen, rule: Optimizer) -> Iterator[Tally]:
    """What each turn of a foreach step holds: its copies so far, and those of the turn before not yet replaced.

    A turn is of one type, unless tensors of all types are one list. Groups of parameters (Trainer has two) are
    calls of their own, which leave nothing behind. Source: torch-adamw, schedule-free.
    """
    held: dict[str, list[Trained]] = {}
    for group in in_groups(trained, optimizer):
        mine = own(group, optimizer, rule)
        if not rule.one_list:
            held = {}
        for rows in [mine] if rule.one_list else by_type(mine):
            for name in rule.copies:
                turn = Tally()
                for kind, copied in [*held.items(), (name, rows)]:
                    for row in copied:
                        turn.add(kind, (row.weight.num_bytes,), row.count)
                held[name] = rows
                yield turn
