"""What a quantiser is to the rest of peftplan: a name, settings, its linears, and what peft can do with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from peftplan.methods.quantize import PackedLinear
from peftplan.specs.formats import DType, PackedFormat
from peftplan.specs.modules import Conv1D, Linear, Module

# peft types that put nothing on linears, so that any base which gradients pass through carries them.
BESIDE_LINEARS = frozenset(
    {"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE"}
    | {"LN_TUNING", "TRAINABLE_TOKENS"}
)


class QuantOptions(BaseModel):
    """Settings of one quantiser alone, under the names that its config gives them; this one has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def is_linear(linear: Linear) -> bool:
    """Whether it is nn.Linear itself, neither a class derived from it nor GPT-2's Conv1D."""
    return linear.convertible and not isinstance(linear, Conv1D)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says of the packed weights: None where the quantiser's own default counts."""

    bits: int | None = None
    block_size: int | None = None
    double_quant: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settled:
    """The same with the quantiser's defaults filled in."""

    bits: int
    block_size: int
    double_quant: bool
    options: Any


@dataclass(frozen=True, slots=True)
class Quantizer:
    """One quantiser: its name, a sentence, its settings, and how it rewrites a model.

    `packs` says which linears a load converts, told whether they stand in a block; `wrap` makes the module in a
    linear's place, `pack_experts` packs experts kept as one tensor a layer, if it takes them. `carries` are the
    peft types with layers over such linears, None where methods say it themselves; `lora_fields` the variants that
    LoRA's layer over them takes. `merging` says what peft's merge does with such a base, `merges` whether it can.
    `trains`: whether gradients pass through it.
    """

    name: str
    summary: str
    source: str
    bits: tuple[int, ...]
    block_sizes: tuple[int, ...]
    default_block_size: int
    make: Callable[[Settled], PackedFormat]
    wrap: Callable[[Linear, PackedFormat, DType], PackedLinear]
    default_bits: int
    packs: Callable[[Linear, bool], bool]
    forward: str  # what the forward dequantises, in words
    merging: str
    options: type[QuantOptions] = QuantOptions
    pack_experts: Callable[[Module, PackedFormat], bool] | None = None
    carries: frozenset[str] | None = frozenset()
    lora_fields: frozenset[str] = frozenset()
    derived_linear: bool = False  # whether its linears derive from nn.Linear, which all-linear finds alone
    merges: bool = False
    trains: bool = True
    double_quant: bool = False  # whether --double-quant means something to it
    # whether prepare_model_for_kbit_training leaves what is not packed in 16 bits
    spared_by_prepare: bool = False
    dequantizes_below: tuple[int, int] | None = None  # compute capability below which weights become dense
    load_dtype: Callable[[DType], DType] = field(default=lambda dtype: dtype)
    adapter_dtypes: tuple[str, ...] = ("fp32", "bf16", "fp16")
    refusal: str = ""  # why it does not train, and what to do
    # settings by the keys of a checkpoint's quantization_config
    reads: Callable[[Mapping[str, Any]], Asked] = field(default=lambda config: Asked())
    # what each tensor that is kept holds, by its name; `{bits}` and `{block}` are filled in
    explains: Mapping[str, str] = field(default_factory=dict)
    skips: tuple[str, ...] = ()  # keys of a quantization_config that list modules left dense
    notes: tuple[str, ...] = ()
