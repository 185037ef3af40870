"""A quantised load on the meta device: transformers' own choice of modules, bitsandbytes' own packing."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from peftplan.errors import MachineLacks
from peftplan.measure.trace.job import Quantization
from peftplan.measure.trace.model import FLOATS
from peftplan.measure.trace.quantizers import PACKERS


def quantize(model: Any, how: Quantization, base_dtype: str) -> list[str]:
    """Pack the model's linears as from_pretrained does; returns what is to be said."""
    if how.kind in PACKERS:
        return PACKERS[how.kind](model, how, base_dtype, _not_converted)
    try:
        import bitsandbytes
    except ImportError:
        raise MachineLacks(
            "a 4-bit or 8-bit base is packed by bitsandbytes, which is not installed; pip install 'peftplan[trace]'"
        ) from None
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    compute = FLOATS[base_dtype] if base_dtype != "fp32" else torch.bfloat16
    four_bit = how.kind != "int8"
    if four_bit:
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=how.kind,
            bnb_4bit_use_double_quant=how.double_quant,
            bnb_4bit_compute_dtype=compute,
        )
    else:
        config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    dense = dict(model.named_modules())
    left = [*_not_converted(model), *how.skips]
    replace_with_bnb_linear(model, modules_to_not_convert=left, quantization_config=config)
    packed = 0
    for name, module in model.named_modules():
        if isinstance(module, (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)):
            _pack(bitsandbytes, module, dense[name], how)
            packed += 1
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = four_bit, not four_bit
    model.is_quantized = True
    model.quantization_method = config.quant_method
    model.config.quantization_config, model.config._is_quantized = config, True
    if not packed:
        return [
            f"the {how.kind} load packs nothing of this model: it has no nn.Linear itself, only classes of its own"
        ]
    if how.kind == "int8":
        return ["no activation is taken to reach the int8 outlier threshold: those that do add a few columns"]
    return []


def _not_converted(model: Any) -> list[str]:
    """Modules that a load leaves dense: the output head, what is tied to it, what must stay wide."""
    from transformers.quantizers.base import HfQuantizer

    wide = getattr(model, "_keep_in_fp32_modules", None)
    if not hasattr(HfQuantizer, "get_modules_to_not_convert"):  # before transformers 4.51
        from transformers.integrations.bitsandbytes import get_keys_to_not_convert

        return [*get_keys_to_not_convert(model), *(wide or ())]
    found: list[str] = HfQuantizer.get_modules_to_not_convert(model, None, wide)
    return found


def _pack(library: Any, module: Any, dense: Any, how: Quantization) -> None:
    weight = dense.weight.data
    if not isinstance(dense, torch.nn.Linear):  # GPT-2's Conv1D keeps its matrix the other way round
        weight = weight.T
    if module.bias is not None:
        module.bias = dense.bias
    module.weight.data = torch.empty(0, device="meta")  # the dense stand-in's
    attributes = dict(module.weight.__dict__)
    if how.kind == "int8":
        attributes.pop("SCB", None)
        module.weight = library.nn.Int8Params(weight, requires_grad=False, **attributes)._quantize("meta")
        return
    attributes["blocksize"] = how.block_size
    module.weight = library.nn.Params4bit(weight, requires_grad=False, **attributes)._quantize("meta")
