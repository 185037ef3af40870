"""What a fine-tuning method is told, and what it reports of what it did to a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peftplan.specs.formats import DType, QuantFormat


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
    quant: QuantFormat | None
    kbit_prepare: bool
    trl_casts: bool = False  # what TRL's trainers cast in a 4-bit model under bf16
    options: Any = None  # those of this method alone: frozen, compared by value
