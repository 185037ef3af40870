"""How a step is run: everything that shapes its timeline beside the model itself."""

from __future__ import annotations

from dataclasses import dataclass

from peftplan.specs.formats import DType


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One training step's shape and settings, resolved from a request."""

    micro_batch: int
    seq_len: int
    checkpointing: bool
    autocast: DType | None
    attention: str  # sdpa | flash | eager
    loss: str  # standard | fused | chunked
    trainer: bool  # HF Trainer's loop: outputs converted to fp32, gradients clipped, loss dropped early
    accumulating: bool  # a micro-step that finds gradients of an earlier one
    master_weights: bool  # fp32 masters beside 16-bit weights
    optimizer: str
    compute_capability: tuple[int, int]
    padding: bool = False  # the attention mask has zeros
    use_reentrant: bool = False  # the kind of checkpointing
    num_batches: int = 1  # micro-batches on the device together: Trainer fetches those of a step at once
    data_parallel: bool = False  # several GPUs, each with the whole model, sum their gradients
    keep_outputs: bool = False  # the model's output outlives backward and the optimizer step
