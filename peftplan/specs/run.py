"""How a step is run: everything that shapes its timeline beside the model itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peftplan.specs.formats import DType
from peftplan.specs.style import SFT, StyleSpec


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
    optimizer_options: Any = None  # of the optimizer alone; None: its defaults
    optimizer_in_backward: bool = False  # each tensor is updated as its gradient comes, by an optimizer of its own
    makes_states: bool = False  # the first step of a run, where such optimizers make their states
    style: StyleSpec = SFT
    padding_free: bool = False  # the micro-batch is one row, its sequences one behind another

    @property
    def num_rows(self) -> int:
        """Rows of a forward pass."""
        return 1 if self.padding_free else self.micro_batch * self.style.rows

    @property
    def row_len(self) -> int:
        """Tokens in a row."""
        return self.micro_batch * self.seq_len if self.padding_free else self.seq_len
