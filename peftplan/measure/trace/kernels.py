"""Operations whose CUDA kernels take memory that fake tensors do not show, by the table of workspaces.

Sizes come from the closed form's own functions, so that both say the same. Operations of bitsandbytes have
Python around their kernels, whose tensors are made here in the library's order.

Source: torch-sdpa, torch-efficient-attention, bnb-linear4bit (backends/cuda/ops.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from peftplan.memory.efficient import backward_workspace_bytes

if TYPE_CHECKING:
    from peftplan.measure.trace.tracker import Kernel, Tracker

aten = torch.ops.aten
# Up to this many rows bitsandbytes multiplies packed weights directly.
GEMM_4BIT_LARGEST = 1536


def cuda_kernels(compute_capability: tuple[int, int]) -> dict[Any, Kernel]:
    """What answers for each operation on this GPU generation."""

    def flash_backward(tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        query, key = args[1], args[2]
        out = func(*args, **kwargs)
        tracker.see(out, func)
        batch, heads, length, dim = query.shape
        kv_heads, kv_length = key.shape[1], key.shape[2]
        rows = -(-length // 128) * 128
        width = -(-dim // 32) * 32 if dim <= 192 else 256
        sizes = [batch * heads * rows * 4, batch * rows * heads * width * 4]
        if kv_heads != heads:
            sizes += [batch * kv_length * heads * dim * query.element_size()] * 2
        tracker.buffers(sizes, func._name)
        return out

    def efficient_backward(tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        query, key, value = args[1], args[2], args[3]
        out = func(*args, **kwargs)
        tracker.see(out, func)
        batch, heads, length, dim = query.shape
        half = query.dtype is not torch.float32
        rows = batch * heads * length * 4
        if not half:
            tracker.buffers([value.numel() * 4, rows, rows], func._name)
        size = backward_workspace_bytes(
            batch, heads, length, key.shape[2], max(dim, value.shape[-1]), half, compute_capability
        )
        tracker.buffers([rows, size], func._name)
        return out

    kernels: dict[Any, Kernel] = {
        aten._scaled_dot_product_flash_attention_backward.default: flash_backward,
        aten._scaled_dot_product_efficient_attention_backward.default: efficient_backward,
    }
    if hasattr(torch.ops, "bitsandbytes"):
        for name, kernel in _BITSANDBYTES.items():
            packet = getattr(torch.ops.bitsandbytes, name, None)
            if packet is not None:
                kernels[packet.default] = kernel
    return kernels


def _gemm_4bit(tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Beyond a number of rows the scales and the weight are dequantised and a linear is called."""
    named = dict(zip((argument.name for argument in func._schema.arguments), args), **kwargs)
    x, shape = named["A"], named["shapeB"]
    rows = x.numel() // x.shape[-1]
    if rows <= GEMM_4BIT_LARGEST and x.shape[-1] % named["blocksize"] == 0:
        out = func(*args, **kwargs)
        tracker.see(out, func)
        return out
    scales = named.get("absmax_8bit")
    held = []
    if scales is not None:
        for _ in range(2):
            made = torch.empty_like(scales, dtype=torch.float32)
            held.append(tracker.result(made, "gemm_4bit absmax"))
    weight = torch.empty(tuple(shape), dtype=x.dtype, device=x.device)
    held.append(tracker.result(weight, "gemm_4bit dequantised weight"))
    out = func(*args, **kwargs)
    tracker.see(out, func)
    return out


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
    "gemm_4bit": _gemm_4bit,
    "int8_vectorwise_quant": _int8_vectorwise_quant,
    "int8_scaled_mm": _int8_scaled_mm,
    "int8_mixed_scaled_mm": _int8_mixed_scaled_mm,
}
