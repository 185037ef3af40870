"""Loading a model, and an evaluation pass: the moments before and beside a training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from peftplan.memory.overheads import cublas_workspace_bytes
from peftplan.memory.resident import Resident
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec


@dataclass(frozen=True, slots=True)
class Loading:
    """Bytes while the weights are loaded: on the device, on the host, and of the checkpoint itself."""

    device_peak_bytes: int
    host_peak_bytes: int
    checkpoint_bytes: int


def load_bytes(model: ModelSpec, resident: Resident) -> Loading:
    """What loading needs.

    Weights come from a 16-bit safetensors checkpoint, memory-mapped and moved tensor by tensor: the host
    holds the largest tensor, and a packed weight is on the device in 16 bit while it is quantised, beside
    the 8-bit and fp32 block scales of its first pass.
    Assumes: mapped pages of the checkpoint are reclaimable and not counted.
    """
    largest = checkpoint = 0
    extra = 0
    for _, parameter, count in model.parameters():
        if parameter.role != "weight":
            continue
        dense = parameter.numel * parameter.dtype.itemsize
        source = 2 * parameter.numel
        checkpoint += source * count
        largest = max(largest, source)
        if parameter.quant is not None:
            blocks = -(-parameter.numel // parameter.quant.block_size)
            extra = max(extra, dense + 4 * blocks)
        elif dense > source:
            extra = max(extra, source)  # cast up after it was loaded
    device = resident.loaded_allocated + extra
    return Loading(device, largest, checkpoint)


def evaluation_peak(play: Callable[[StepSpec], int], step: StepSpec, resident: Resident) -> int:
    """The most allocated in an evaluation pass over the same batch, optimizer states beside it."""
    level = play(replace(step, checkpointing=False, accumulating=False))
    return resident.allocated + cublas_workspace_bytes(step.compute_capability) + level
