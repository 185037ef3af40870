"""Operations whose CUDA kernels take more than torch's own shape functions allow.

Source: torch-grouped-mm (GroupedBlas.cpp: products one by one for types and GPUs that the kernel does not
take; GroupedMMUtils.h: rows of the result begin at multiples of 16 bytes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from peftplan.measure.trace.tracker import Kernel, Tracker

aten = torch.ops.aten
_ROW_ALIGNMENT_BYTES = 16


def wider_shapes() -> dict[Any, Kernel]:
    """What answers for each such operation."""
    return {aten._grouped_mm.default: _grouped_mm}


def _grouped_mm(tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    first, second = args[0], args[1]
    if first.dtype is torch.bfloat16 and second.dtype is torch.bfloat16:
        return tracker.ordinary(func, args, kwargs)
    offsets = args[2] if len(args) > 2 else kwargs.get("offs")
    columns = second.shape[-1]
    step = _ROW_ALIGNMENT_BYTES // first.element_size()
    stride = -(-columns // step) * step
    if first.dim() == 2 and second.dim() == 2:
        assert offsets is not None
        shape = [offsets.shape[0], first.shape[0], columns]
    elif first.dim() == 3 and second.dim() == 3:
        shape = [first.shape[0], first.shape[1], columns]
    else:
        shape = [first.shape[-2] if first.dim() == 2 else first.shape[1], columns]
    strides = [shape[1] * stride, stride, 1] if len(shape) == 3 else [stride, 1]
    made = torch.empty_strided(shape, strides, dtype=first.dtype, device=first.device)
    return tracker.result(made, func._name)
