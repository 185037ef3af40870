"""The request as a server runs it, and bases that are packed as servers multiply them.

Nothing is prepared for training: no autocast, no casts to fp32, adapters in the format of the base where the base
takes that. What transformers loads packed it runs as it does in training; bitsandbytes' formats run so everywhere.
Other formats a paged server multiplies as they are, 16-bit rows by packed weights (Marlin kernels): it reads what
is stored, and no dense weight is made. So are experts whose format cannot train (gpt-oss's MXFP4), by any server.

Source: marlin, transformers-mxfp4
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from peftplan.methods.quantizers import QUANTIZERS, Asked
from peftplan.methods.quantizers.asked import format_of, named_in, read_from, skips_of
from peftplan.methods.wrapping import freeze
from peftplan.request import Request
from peftplan.resolve import find_requested
from peftplan.serving.options import Serving
from peftplan.specs.formats import PackedFormat, QuantFormat
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Packed:
    """A base that is multiplied as it is packed: its format by name, modules left dense, experts or linears."""

    name: str
    format: PackedFormat
    skips: tuple[str, ...]
    of_experts: bool


def packed_base(request: Request, serving: Serving) -> Packed | None:
    """How the base is packed where it is multiplied so; None where it is dense, or runs as in training."""
    config = find_requested(request.model).config
    stated = None if request.quant == "none" else named_in(config)
    name = request.quant or stated
    if name not in QUANTIZERS:
        return None
    read = read_from(config) if name == stated else Asked()
    asked = Asked(
        request.quant_bits if request.quant_bits is not None else read.bits,
        request.quant_block_size if request.quant_block_size is not None else read.block_size,
        request.double_quant if "double_quant" in request.model_fields_set else read.double_quant,
        {**read.options, **request.quant_options},
    )
    found, trains = format_of(name, asked), QUANTIZERS[name].trains
    if trains and (serving.server != "paged" or isinstance(found, QuantFormat)):
        return None
    return Packed(name, found, skips_of(config) if name == stated else (), not trains)


def of_inference(request: Request, packed: Packed | None) -> Request:
    """The same request without what belongs to training; a base that is multiplied packed is dense here."""
    base = request.base_dtype or "bf16"
    adapter = request.adapter_dtype
    if "adapter_dtype" not in request.model_fields_set:
        row = None if packed is not None else QUANTIZERS.get(request.quant or "")
        takes = (base,) if row is None else row.adapter_dtypes
        adapter = base if base in takes else takes[0]  # type: ignore[assignment]
    return request.model_copy(
        update={
            "base_dtype": base,
            "adapter_dtype": adapter,
            "precision": base,
            "kbit_prepare": False,
            "checkpointing": False,
            **({"quant": "none", "quant_bits": None, "quant_options": {}} if packed is not None else {}),
        }
    )


def pack(model: ModelSpec, method: MethodSpec, packed: Packed) -> None:
    """Store a model as it is packed."""
    freeze(model, method if packed.of_experts else replace(method, quant=packed.format, quant_skips=packed.skips))
    if packed.of_experts:
        for _, parameter, _ in model.parameters():
            if parameter.role == "weight" and len(parameter.shape) == 3:
                parameter.quant = packed.format


def stored_frac(packed: ModelSpec, dense: ModelSpec, num_dims: int) -> float:
    """What a model's blocks take of weights of so many dimensions, as a share of what dense ones take."""
    after, before = (
        sum(
            count * parameter.num_bytes()
            for block, count, _ in model.groups()[1:]
            for _, parameter in block.named_parameters()
            if parameter.role == "weight" and len(parameter.shape) == num_dims
        )
        for model in (packed, dense)
    )
    return after / before if before else 1.0
