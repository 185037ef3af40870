"""Bases packed by others than bitsandbytes, on the meta device: the libraries' own linears, without weights.

* hqq: hqq's HQQLinear on its PyTorch backend, with packed tensors of the shapes that its quantiser makes.
* fp8: transformers' own replacement; the product's kernel, which comes from the Hub as Triton code, is stood in for
  by its result, and DeepGEMM's by its converted input too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from peftplan.errors import MachineLacks
from peftplan.measure.trace.job import Quantization
from peftplan.measure.trace.model import FLOATS
from peftplan.measure.trace.quantizers_of_kernels import pack_aqlm, pack_awq, pack_gptq
from peftplan.methods.quantizers.asked import skipped
from peftplan.methods.quantizers.fp8 import converts_input
from peftplan.methods.quantizers.hqq import HqqFormat

Skips = Callable[[Any], list[str]]


class _Meta(dict[str, Any]):
    """HQQLinear's `meta`, whose tensors are buffers of the layer, so that they stand with its others."""

    layer: Any = None

    def __getitem__(self, key: str) -> Any:
        return getattr(self.layer, f"packed_{key}") if key in ("scale", "zero") else super().__getitem__(key)


def pack_hqq(model: Any, how: Quantization, base_dtype: str, skips: Skips) -> list[str]:
    """Put an HQQLinear in the place of every nn.Linear but the output head."""
    try:
        from hqq.core.quantize import HQQLinear, Quantizer
    except ImportError:
        raise MachineLacks("an hqq base is packed by hqq, which is not installed; pip install hqq") from None
    compute = FLOATS[base_dtype] if base_dtype != "fp32" else torch.bfloat16
    made = HqqFormat("hqq", how.bits, how.block_size, int(how.options.get("axis", 1)))
    for name, linear in list(model.named_modules()):
        if type(linear) is not torch.nn.Linear or name.rpartition(".")[2] == "lm_head" or skipped(name, how.skips):
            continue
        layer = HQQLinear(None, None, compute_dtype=compute, device="cuda", initialize=False)
        packing = Quantizer.bit_to_packing[how.bits]
        stored = torch.int32 if how.bits == 3 else torch.uint8
        shape = made.packed_shape(linear.weight.numel())
        layer.W_q = torch.nn.Parameter(torch.empty(shape, dtype=stored, device="meta"), requires_grad=False)
        layer.W_q.stands_for = linear.weight.numel()
        groups = linear.weight.numel() // how.block_size
        columns = (groups, 1) if made.axis else (1, groups)
        for part in ("scale", "zero"):
            layer.register_buffer(f"packed_{part}", torch.empty(columns, dtype=compute, device="meta"))
        layer.meta = _Meta(
            nbits=how.bits, group_size=how.block_size, shape=linear.weight.shape, axis=made.axis, packing=packing,
            unpack_view_dtype=stored, view_as_float=False, quant_scale=False, quant_zero=False,
            compute_dtype=compute,
        )  # fmt: skip
        layer.meta.layer = layer
        layer.in_features, layer.out_features, layer.ready = linear.in_features, linear.out_features, True
        if linear.bias is not None:
            del layer.bias
            layer.register_buffer("bias", linear.bias.detach().to(compute))
            model.num_packed = getattr(model, "num_packed", 0) + linear.bias.numel()  # no parameter
        model.set_submodule(name, layer)
    model.quantization_method = "hqq"
    model.is_quantized = model.hqq_quantized = True
    return []


def pack_fp8(model: Any, how: Quantization, base_dtype: str, skips: Skips) -> list[str]:
    """transformers' replace_with_fp8_linear, and a stand-in for its kernels."""
    import transformers
    from transformers.integrations import finegrained_fp8

    config = transformers.FineGrainedFP8Config(weight_block_size=(how.block_size, how.block_size))
    dense = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    finegrained_fp8.replace_with_fp8_linear(
        model, modules_to_not_convert=[*skips(model), *how.skips], quantization_config=config, pre_quantized=True
    )
    for name, module in model.named_modules():
        for part, parameter in list(module._parameters.items()):
            if part.endswith("_scale_inv") and parameter is not None:
                parameter.stands_for = 0
        if isinstance(module, finegrained_fp8.FP8Linear) and module.bias is not None:
            module.bias = dense[name].bias
    finegrained_fp8.fp8_linear = _fp8_linear
    finegrained_fp8.fp8_grouped_matmul = _fp8_grouped_matmul
    _capability[:] = [how.compute_capability]
    model.quantization_method = config.quant_method
    model.is_quantized = True
    return ["fp8: the product's kernels are no part of what is installed; their results stand in for them"]


_capability: list[tuple[int, int]] = []


def _fp8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    block_size: Any = None,
    bias: torch.Tensor | None = None,
    *_: Any,
) -> torch.Tensor:
    """The result; on GPUs that run DeepGEMM, the input in fp8 and its scales until that is there."""
    held = []
    if converts_input(_capability[0], int(block_size[0]), x.dtype in (torch.bfloat16, torch.float16)):
        rows = x.numel() // x.shape[-1]
        held.append(torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device))
        count = rows * -(-x.shape[-1] // int(block_size[1]))
        held.append(torch.empty((count,), dtype=torch.float32, device=x.device))
    out = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype, device=x.device)
    return out if bias is None else out.add_(bias)


def _fp8_grouped_matmul(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty((x.shape[0], weight.shape[1]), dtype=x.dtype, device=x.device)


PACKERS = {"hqq": pack_hqq, "fp8": pack_fp8, "gptq": pack_gptq, "awq": pack_awq, "aqlm": pack_aqlm}
