"""What a fine-tuning method is told, and what it reports of what it did to a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peftplan.specs.formats import DType, PackedFormat


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """Settings of a method, resolved from a request."""

    rank: int
    dropout: float
    targets: str | tuple[str, ...]
    bias: str  # none | all | lora_only
    modules_to_save: tuple[str, ...]
    adapter_dtype: DType
    base_dtype: DType
    quant: PackedFormat | None
    kbit_prepare: bool
    trl_casts: bool = False  # what TRL's trainers cast in a 4-bit model under bf16
    quant_skips: tuple[str, ...] = ()  # names of modules that the checkpoint's own config leaves dense
    loaded_from: PackedFormat | None = None  # the checkpoint's format, where weights are dequantised on the way
    base_notes: tuple[str, ...] = ()  # what is to be said of how the base is stored
    options: Any = None  # those of this method alone: frozen, compared by value


@dataclass(frozen=True, slots=True)
class Initialisation:
    """What a method computes once before training, from `reads`: weights, inputs or gradients.

    `programs` play one matrix each, given the tape and the tokens of a batch, and say how many such there are;
    `held_bytes` stay beside the model meanwhile; `disk_bytes` are written beside the adapter, for what `disk` says.
    """

    reads: str
    programs: tuple[tuple[Callable[[Any, int], Any], int], ...]
    held_bytes: int
    disk_bytes: int
    disk: str
