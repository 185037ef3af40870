"""Operations whose CUDA kernels take memory that fake tensors do not show.

Those of bitsandbytes have Python around their kernels, whose tensors are made here in the library's order.

Source: bnb-linear4bit (backends/cuda/ops.py).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from peftplan.measure.trace.torch_kernels import torch_kernels
from peftplan.memory.workspaces.bitsandbytes import multiplies_packed

if TYPE_CHECKING:
    from peftplan.measure.trace.tracker import Kernel, Tracker

_SHORT = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def cuda_kernels(compute_capability: tuple[int, int]) -> dict[Any, Kernel]:
    """What answers for each operation on this GPU generation."""
    kernels = torch_kernels(compute_capability)
    if hasattr(torch.ops, "bitsandbytes"):
        packed = {**_BITSANDBYTES, "gemm_4bit": partial(_gemm_4bit, compute_capability)}
        for name, kernel in packed.items():
            packet = getattr(torch.ops.bitsandbytes, name, None)
            if packet is not None:
                kernels[packet.default] = kernel
    return kernels


def _gemm_4bit(
    capability: tuple[int, int], tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Where the packed weight is not multiplied as it is, scales and weight are dequantised for a linear."""
    named = dict(zip((argument.name for argument in func._schema.arguments), args), **kwargs)
    x, (outputs, inputs) = named["A"], named["shapeB"]
    rows = x.numel() // inputs
    if multiplies_packed(rows, outputs, inputs, _SHORT[x.dtype], named["blocksize"], capability):
        return tracker.ordinary(func, args, kwargs)
    scales = named.get("absmax_8bit")
    held = []
    if scales is not None:
        for _ in range(2):
            made = torch.empty_like(scales, dtype=torch.float32)
            held.append(tracker.result(made, "gemm_4bit absmax"))
    weight = torch.empty((outputs, inputs), dtype=x.dtype, device=x.device)
    held.append(tracker.result(weight, "gemm_4bit dequantised weight"))
    return tracker.ordinary(func, args, kwargs)


def _int8_vectorwise_quant(tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows in one byte a value; looking for outliers makes a copy of absolute values and a mask."""
    named = dict(zip((argument.name for argument in func._schema.arguments), args), **kwargs)
    x, threshold = named["A"], named.get("threshold", 0.0)
    stats = torch.empty((x.numel() // x.shape[-1],), device=x.device, dtype=torch.float32)
    tracker.result(stats, func._name)
    quantised = tracker.result(torch.empty(x.shape, device=x.device, dtype=torch.int8), func._name)
    outliers = None
    if threshold > 0.0:
        absolute = tracker.result(torch.empty_like(x), "abs")
        mask = tracker.result(torch.empty_like(x, dtype=torch.bool), "ge")
        del absolute
        tracker.buffers([1, 1], "any")
        del mask
        outliers = torch.empty((0,), device=x.device, dtype=torch.int64)
    return quantised, stats, outliers


def _int8_scaled_mm(tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An integer product, its dequantised form in fp16, and that in the type asked for."""
    named = dict(zip((argument.name for argument in func._schema.arguments), args), **kwargs)
    return _scaled(tracker, named["A"], named["B"], named.get("dtype") or torch.float16)


def _int8_mixed_scaled_mm(tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Without outliers: the plain product, and an empty tensor for their columns."""
    named = dict(zip((argument.name for argument in func._schema.arguments), args), **kwargs)
    x = named["A"]
    none = torch.empty((0,), device=x.device, dtype=x.dtype)
    return _scaled(tracker, named["CA"], named["CB"], x.dtype), none


def _scaled(tracker: Tracker, rows: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    shape = (*rows.shape[:-1], weight.shape[0])
    sums = tracker.result(torch.empty(shape, device=rows.device, dtype=torch.int32), "int8_linear_matmul")
    half = tracker.result(torch.empty(shape, device=rows.device, dtype=torch.float16), "int8_mm_dequant")
    out = half if dtype is torch.float16 else tracker.result(torch.empty_like(half, dtype=dtype), "_to_copy")
    del sums
    return out


_BITSANDBYTES: dict[str, Any] = {
    "int8_vectorwise_quant": _int8_vectorwise_quant,
    "int8_scaled_mm": _int8_scaled_mm,
    "int8_mixed_scaled_mm": _int8_mixed_scaled_mm,
}
