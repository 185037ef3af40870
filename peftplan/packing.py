"""How the base is stored: what a request says, what the method takes, and what the checkpoint's own config states.

A config with a `quantization_config` belongs to a checkpoint that is packed: its format counts unless the request
names another. Formats that transformers dequantises while loading (mxfp4 to train, fp8 on older GPUs) give a base
in 16 bits. Nothing of a model repository is executed. Source: transformers-quantizers
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftplan.errors import BadInput
from peftplan.methods.quantizers import QUANTIZERS, Asked, Quantizer
from peftplan.methods.quantizers.asked import format_of, named_in, read_from, settled, skips_of
from peftplan.methods.quantizers.quantizer import BESIDE_LINEARS
from peftplan.request import Request
from peftplan.specs.formats import FLOAT_DTYPES, PackedFormat

if TYPE_CHECKING:
    from peftplan.methods import Method
    from peftplan.resolve import PeftMethod

NONE = "none"


@dataclass(frozen=True, slots=True)
class Packing:
    """The fields of a filled request, the format they stand for, and what is to be said of it.

    `loaded_from` is the checkpoint's format where weights are dequantised on the way.
    """

    fields: dict[str, Any]
    format: PackedFormat | None = None
    skips: tuple[str, ...] = ()
    loaded_from: PackedFormat | None = None
    notes: tuple[str, ...] = ()


def packing_of(
    request: Request, method: Method | PeftMethod, config: Mapping[str, Any], capability: tuple[int, int]
) -> Packing:
    """How the base is stored, contradictions refused."""
    stated = None if request.quant == NONE else named_in(config)
    name, note = _chosen(request, method, stated)
    notes = [note] if note else []
    asked = read_from(config) if name is not None and name == stated else Asked()
    if name in (None, NONE):
        return _dense(request, method, config, stated, notes)
    row = QUANTIZERS[name]
    asked = _over(request, row, asked)
    if row.dequantizes_below is not None and capability < row.dequantizes_below:
        major, minor = capability
        notes.append(
            f"{name} runs on compute capability {'.'.join(map(str, row.dequantizes_below))} and later: on "
            f"{major}.{minor} "
            "transformers dequantises the weights when it loads them, and the base stays in "
            f"{request.base_dtype or 'bf16'}"
        )
        return Packing(_fields(NONE, request), None, (), format_of(name, asked), tuple(notes))
    if not row.trains:
        raise BadInput(row.refusal)
    _check_carried(request, method, row, stated == name and request.quant is None)
    if names_targets(request, method, row):
        notes.append(
            f"targets: peft 0.21's all-linear finds nn.Linear and classes derived from it, which {name}'s are not; "
            "name the modules, as they are counted here"
        )
    made = settled(name, asked)
    fields = {**_fields(name, request), "quant_bits": made.bits, "quant_block_size": made.block_size}
    fields["quant_options"] = made.options.model_dump()
    if row.double_quant:
        fields["double_quant"] = made.double_quant
    base = FLOAT_DTYPES[request.base_dtype or "bf16"]
    if row.load_dtype(base) is not base:
        fields["base_dtype"] = row.load_dtype(base).short
    return Packing(fields, row.make(made), skips_of(config) if name == stated else (), None, tuple(notes))


def names_targets(request: Request, method: Method | PeftMethod, row: Quantizer) -> bool:
    """Whether linears are asked for by peft's word for all of them, which does not find this quantiser's."""
    kind = getattr(method, "peft", {}).get("peft_type")
    if row.derived_linear or kind is None or kind in BESIDE_LINEARS:
        return False
    return isinstance(request.targets, str) and request.targets.strip().lower() == "all-linear"


def is_packed(quant: str | None) -> bool:
    """Whether the `quant` of a filled request means packed weights."""
    return quant not in (None, NONE)


def _chosen(request: Request, method: Method | PeftMethod, stated: str | None) -> tuple[str | None, str]:
    """The format that counts, and what to say of how it came about."""
    if stated is None:
        return request.quant or method.default_quant, ""
    row, packed = QUANTIZERS[stated], f"the config's checkpoint is packed by {stated}"
    if request.quant is not None:
        note = (
            f"{packed}, which transformers does not load as {request.quant}: the figures are of a 16-bit "
            "checkpoint of "
            "the same model"
        )
        return request.quant, "" if request.quant == stated else note
    if not method.frozen_base:
        if row.trains and row.dequantizes_below is None:
            raise BadInput(
                f"--method {method.name} trains weights, and {packed}; give the config of the model before it was "
                "packed, or --quant none"
            )
        return NONE, f"{packed}: its weights are dequantised when it is loaded"
    if row.trains:
        return (
            stated,
            f"{packed}, as its quantization_config says, which counts here; --quant none or another changes it",
        )
    if method.default_quant is not None:
        return method.default_quant, f"{packed}: {method.default_quant} needs it saved in 16 bits first"
    return NONE, (
        f"{packed}: experts are dequantised to 16 bits when it is loaded (dequantize=True), since transformers "
        "does not "
        "train them packed"
    )


def _dense(
    request: Request, method: Method | PeftMethod, config: Mapping[str, Any], stated: str | None, notes: list[str]
) -> Packing:
    """No packed weights: `none` is kept where leaving it out would mean something else."""
    if request.quant_bits is not None or request.quant_options:
        what = "--quant-bits" if request.quant_bits is not None else "--quant-option"
        raise BadInput(f"{what} is of packed weights, and none are asked for; add --quant gptq, awq, hqq or aqlm")
    from_checkpoint = request.quant is None and stated is not None
    kept = request.quant == NONE and (method.default_quant is not None or "quantization_config" in config)
    source = format_of(stated, read_from(config)) if from_checkpoint and stated is not None else None
    return Packing(_fields(NONE if kept or from_checkpoint else None, request), None, (), source, tuple(notes))


def _fields(name: str | None, request: Request) -> dict[str, Any]:
    return {
        "quant": name,
        "quant_bits": None,
        "quant_block_size": request.quant_block_size or 64,
        "quant_options": {},
    }


def _over(request: Request, row: Quantizer, read: Asked) -> Asked:
    """What the request states, over what the checkpoint's config says."""
    return Asked(
        request.quant_bits if request.quant_bits is not None else read.bits,
        request.quant_block_size if request.quant_block_size is not None else read.block_size,
        request.double_quant if "double_quant" in request.model_fields_set else read.double_quant,
        {
            **{key: value for key, value in read.options.items() if key in row.options.model_fields},
            **(request.quant_options or {}),
        },
    )


def _check_carried(request: Request, method: Method | PeftMethod, row: Quantizer, from_config: bool) -> None:
    """Refuse what peft has no layers for over such linears; bitsandbytes' are each method's to refuse."""
    if row.carries is None or not method.frozen_base:
        return
    leave = "give --quant none" if from_config else "leave --quant out"
    fields: Mapping[str, Any] = getattr(method, "peft", {"peft_type": method.name.replace("-", "_").upper()})
    kind = fields.get("peft_type")
    if kind is not None and kind not in row.carries:
        raise BadInput(
            f"--method {method.name} with --quant {row.name}: peft 0.21 has no layers of it over such linears; "
            f"take --method lora, or {leave}"
        )
    variants = {
        name
        for name, value in fields.items()
        if kind == "LORA" and value and (name.startswith(("use_", "init_")) or name.endswith("_config"))
    }
    if variants - row.lora_fields - {"use_rslora"}:
        raise BadInput(
            f"--method {method.name} with --quant {row.name}: peft 0.21 has plain LoRA only over such linears"
            f"{' (and DoRA)' if 'use_dora' in row.lora_fields else ''}; take --method lora, or {leave}"
        )
    if request.adapter_dtype not in row.adapter_dtypes:
        raise BadInput(
            f"--adapter-dtype {request.adapter_dtype} with --quant {row.name}: peft 0.21 would make the adapters "
            "in the "
            "packed weights' type, which nothing multiplies; leave --adapter-dtype fp32"
        )
    if request.base_dtype == "fp32" and row.name not in ("gptq", "awq", "fp8"):
        raise BadInput(
            f"--base-dtype fp32 with --quant {row.name}: its linears compute in 16 bits only; give bf16 or fp16"
        )
