"""State that lives from step to step: weights, adapters, gradients, masters, optimizer states.

Each figure comes twice: requested bytes, which `resident` reports, and the bytes the allocator counts,
which levels are made of (every tensor rounded up to 512).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from peftplan.optimizers import Optimizer
from peftplan.specs.formats import FP32, DType, allocated_bytes
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
    paged_bytes: int
    num_trainable: int
    num_trained_tensors: int
    num_adapter: int
    adapter_checkpoint_bytes: int

    @property
    def allocated(self) -> int:
        """Rounded bytes of everything but gradients."""
        return (
            self.weights.allocated
            + self.adapters.allocated
            + self.master_weights.allocated
            + self.optimizer_states.allocated
        )


def tally_resident(model: ModelSpec, optimizer: Optimizer, master_weights: bool) -> Resident:
    """Count every parameter of the model and what the optimizer keeps for those that train."""
    weights, adapters, gradients = Tally(), Tally(), Tally()
    masters, states, checkpoint, num_adapter = Tally(), Tally(), 0, 0
    trained: list[tuple[Parameter, int]] = []
    for name, parameter, count in model.parameters():
        tally = adapters if parameter.role == "adapter" else weights
        kind = _kind(name, parameter)
        for storage, size in parameter.storages():
            tally.add(f"{kind}: {storage}", (size,), count)
        if parameter.edge is None:
            continue
        trained.append((parameter, count))
        gradients.add(parameter.dtype.short, (parameter.num_bytes(),), count)
        if parameter.role == "adapter":
            checkpoint += parameter.num_bytes() * count
            num_adapter += parameter.numel * count
        dtype = parameter.dtype
        if master_weights:
            dtype = FP32
            masters.add("fp32", (4 * parameter.numel,), count)
        states.add("states", optimizer.states(parameter.shape, dtype), count)
    states.add("tables", optimizer.tables, 1)
    return Resident(
        weights=weights,
        adapters=adapters,
        gradients=gradients,
        master_weights=masters,
        optimizer_states=states,
        step_temporary=_step_temporary(trained, optimizer, master_weights),
        paged_bytes=sum(optimizer.paged(p.shape, p.dtype) * n for p, n in trained),
        num_adapter=num_adapter,
        num_trained_tensors=sum(n for _, n in trained),
        num_trainable=sum(p.numel * n for p, n in trained),
        adapter_checkpoint_bytes=checkpoint,
    )


def _kind(name: str, parameter: Parameter) -> str:
    if parameter.role == "buffer":
        return "buffers"
    if parameter.role == "adapter":
        return "adapters"
    if parameter.quant is not None:
        return f"{parameter.quant.kind} linears"
    return "norms and biases" if len(parameter.shape) == 1 else "matrices"


def _step_temporary(trained: list[tuple[Parameter, int]], optimizer: Optimizer, master_weights: bool) -> Tally:
    """The most that one type group of the step (foreach) or one tensor (loop) holds at once.

    Assumes with master weights: fp32 copies of all gradients replace the 16-bit ones before the step, as
    Megatron-LM's and apex's 16-bit optimizers do without a fused kernel.
    """
    groups: dict[str, Tally] = {}
    largest = Tally()
    fp32_gradients = Tally()
    for parameter, count in trained:
        dtype: DType = FP32 if master_weights else parameter.dtype
        group = groups.setdefault(dtype.short, Tally())
        group.add("copy of the second moment", (optimizer.step_all(parameter.numel, dtype),), count)
        one = Tally()
        one.add("largest tensor's update", (optimizer.step_each(parameter.numel, dtype),), 1)
        if one.allocated > largest.allocated:
            largest = one
        if master_weights:
            fp32_gradients.add("fp32 gradients", (4 * parameter.numel,), count)
    worst = max([largest, *groups.values()], key=lambda tally: tally.allocated)
    if master_weights:
        worst.requested += fp32_gradients.requested
        worst.allocated += fp32_gradients.allocated
        worst.parts.update(fp32_gradients.parts)
    return worst
