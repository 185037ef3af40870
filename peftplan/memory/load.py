"""Loading a model, and an evaluation pass: the moments before and beside a training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from peftplan.memory.generated import Generated
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

    Weights come from a safetensors checkpoint, memory-mapped and moved tensor by tensor: the host holds the largest
    tensor, and a weight that is packed on the way is on the device in 16 bit while that is done, beside the fp32
    block scales of its first pass. Packed checkpoints are moved as they are; those whose weights are dequantised on
    the way hold what that takes. Assumes: mapped pages of the checkpoint are reclaimable and not counted.
    """
    largest = checkpoint = 0
    extra = 0
    for _, parameter, count in model.parameters():
        if parameter.role != "weight":
            continue
        dense = parameter.numel * parameter.dtype.itemsize
        source = 2 * parameter.numel
        if parameter.quant is not None:
            source = parameter.quant.checkpoint_bytes(parameter.shape)
            extra = max(extra, parameter.quant.loading_bytes(parameter.shape, parameter.dtype.itemsize))
        elif parameter.loaded_from is not None:
            source = parameter.loaded_from.checkpoint_bytes(parameter.shape)
            extra = max(extra, parameter.loaded_from.loading_bytes(parameter.shape, parameter.dtype.itemsize))
        elif dense > source:
            extra = max(extra, source)  # cast up after it was loaded
        checkpoint += source * count
        largest = max(largest, source)
    device = resident.loaded_allocated + extra
    return Loading(device, largest, checkpoint)


def evaluation_peak(
    play: Callable[[StepSpec], int], step: StepSpec, resident: Resident, generated: Generated | None = None
) -> int:
    """The most allocated in an evaluation of the same batch, optimizer states beside it: a pass, or generation."""
    level = play(replace(step, checkpointing=False, accumulating=False))
    if generated is not None:
        level = max(level, generated.peak_bytes)
    return resident.allocated + cublas_workspace_bytes(step.compute_capability) + level
