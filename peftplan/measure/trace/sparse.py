"""SHiRA and FRoD without sparse tensors, which fake ones cannot be: what CUDA kernels take for them, made dense.

Source: torch-sparse (SparseCUDATensorMath.cu, SparseTensor.cpp, SparseTensorMath.cpp)
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from peftplan.errors import BadInput

Replace = Callable[[Any, str, Any], None]
OF_SPARSE_TENSORS = ("SHIRA", "FROD")


def without_mask(config: Any) -> None:
    """peft draws places from a mask of random numbers, and a trace has no values: none are drawn."""
    config.mask_fn = None


def place_indices(model: Any) -> None:
    """Indices of the places as buffers, so that they are made with the model."""
    layers = import_module("peft.tuners.shira.layer")
    buffers = import_module("peft.tuners._buffer_dict").BufferDict
    for module in model.modules():
        if isinstance(module, layers.ShiraLayer):
            found = {
                name: torch.empty((2, weight.numel()), dtype=torch.int32, device="meta")
                for name, weight in module.shira_weight.items()
            }
            module.shira_indices = buffers(found, persistent=False)


def without_sparse_tensors(replace: Replace) -> None:
    """While a step runs: what stands in the place of a sparse delta weight."""
    replace(getattr(_module("peft.tuners.shira.layer"), "Linear", None), "get_delta_weight", _delta_weight)
    frod = getattr(_module("peft.tuners.frod.layer"), "Linear", None)
    replace(frod, "_get_frod_tensors", _frod_tensors)
    replace(frod, "_sparse_activation_mm", _multiplied)


def keep_on_host(model: Any) -> None:
    """Frozen weights that FRoD takes off the device as the model is moved there; with dropout they come back."""
    for module in model.modules():
        offloads = any(getattr(module, "runtime_offload_base_weight", {}).values())
        if offloads and all(isinstance(drop, torch.nn.Identity) for drop in module.frod_dropout.values()):
            base = module.get_base_layer()
            weight = torch.empty(base.weight.shape, dtype=base.weight.dtype, device="cpu")
            base._parameters["weight"] = torch.nn.Parameter(weight, requires_grad=False)


def _module(name: str) -> Any:
    """A module by its name; None where this release of peft has none."""
    try:
        return import_module(name)
    except ImportError:
        return None


def _delta_weight(layer: Any, adapter: str) -> Any:
    values = layer.shira_weight[adapter] * layer.scaling[adapter]
    indices = layer.shira_indices[adapter].to(torch.int64)
    return _Sparse(_Placed.apply(values, indices, layer.out_features, layer.in_features), indices)


def _frod_tensors(layer: Any, adapter: str, *, device: Any, dtype: torch.dtype) -> Any:
    """What FRoD's layer is made of, with its sparse matrix coalesced as the CUDA kernel does it."""
    outer = layer.frod_U[adapter].to(device=device, dtype=dtype)
    inner = layer.frod_V[adapter].to(device=device, dtype=dtype)
    indices = layer.frod_s_indices[adapter]
    values = layer.frod_lambda_s_values[adapter].to(device=device, dtype=dtype)
    diagonal = layer.frod_lambda_l[adapter].to(device=device, dtype=dtype)
    with torch.no_grad():
        held = [torch.empty((values.numel(),), dtype=torch.int64, device=device) for _ in range(3)]
        sparse = values, torch.empty_like(values), torch.empty_like(indices)
    del held
    return outer, inner, sparse, diagonal


def _multiplied(layer: Any, rows: torch.Tensor, sparse: Any) -> Any:
    """Rows by the transpose of a sparse matrix, which peft makes dense where they are in 16 bits."""
    if rows.dtype not in (torch.float16, torch.bfloat16):
        raise BadInput(
            "peft's frod multiplies a sparse matrix in fp32, whose kernels a trace does not know; take "
            "--precision bf16-mixed"
        )
    return rows @ _Densified.apply(*sparse, rows.shape[-1]).t()


class _Densified(torch.autograd.Function):
    """A coalesced sparse matrix made dense; the gradient is picked from the dense one's, then as a sparse one."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, merged: torch.Tensor, indices: torch.Tensor, size: int) -> Any:
        ctx.save_for_backward(values, merged, indices)
        return values.new_zeros((size, size))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        _values, _merged, indices = ctx.saved_tensors
        mask = gradient.new_ones((1,))
        picked = gradient[indices[0], indices[1]]
        copied = indices.clone()
        out = picked * mask
        del mask, picked, copied
        out = torch.empty_like(out)
        return out, None, None, None


class _Sparse:
    """A sparse tensor as far as `dense += sparse` asks for it: a tensor does not know it, so Python asks it."""

    def __init__(self, placed: torch.Tensor, indices: torch.Tensor) -> None:
        self.placed, self.indices = placed, indices

    def __radd__(self, dense: torch.Tensor) -> Any:
        return _Added.apply(dense, self.placed, self.indices)


class _Placed(torch.autograd.Function):
    """Values seen as a matrix that has them at their places; the gradient is what a matrix has there."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, indices: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        ctx.save_for_backward(indices, values)
        return values[:1].expand(rows, columns)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        indices, _values = ctx.saved_tensors
        mask = gradient.new_ones((1,))
        picked = gradient[indices[0], indices[1]]
        copied = indices.clone()
        out = picked * mask
        del mask, picked, copied
        return out, None, None, None


class _Added(torch.autograd.Function):
    """dense += placed, as the kernel does it: in the placed one's type, in copies where that is another."""

    @staticmethod
    def forward(ctx: Any, dense: torch.Tensor, placed: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(dense)
        held = []
        if dense.dtype is not placed.dtype:
            held = [torch.empty_like(dense, dtype=placed.dtype), dense.to(placed.dtype)]
        held.append(torch.arange(indices.shape[1], device=indices.device))
        del held
        return dense

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return None, gradient, None
