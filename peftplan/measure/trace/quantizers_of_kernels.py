"""Bases whose kernels are binaries or compiled: the libraries' own linears, and what their kernels allocate.

What a kernel allocates stands in for it, in the order in which its source does; that was read, and is not traced:

* gptq: gptqmodel's TorchLinear, whose dequantised weight torch.compile makes in one kernel.
* awq: gptqmodel's AwqGEMMLinear, with what its CUDA extension allocates.
* aqlm: aqlm's QuantizedLinear, with what its CUDA kernels allocate.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from peftplan.errors import MachineLacks
from peftplan.measure.trace.job import Quantization
from peftplan.measure.trace.model import FLOATS
from peftplan.methods.quantizers.aqlm import CODEBOOKS
from peftplan.methods.quantizers.asked import skipped
from peftplan.methods.quantizers.awq import PARTS

Skips = Callable[[Any], list[str]]
_NOTE = "{kind}: the library's own linears; what their kernels allocate, by their source, stands in for these"


def pack_gptq(model: Any, how: Quantization, base_dtype: str, skips: Skips) -> list[str]:
    """optimum's choice: every nn.Linear itself, and Conv1D, inside the blocks."""
    kind = _library("gptqmodel.nn_modules.qlinear.torch", "gptqmodel").TorchLinear
    kind.dequantize_weight = _dequantised
    from transformers.pytorch_utils import Conv1D

    for name, linear in list(model.named_modules()):
        plain = type(linear) is torch.nn.Linear or isinstance(linear, Conv1D)
        if plain and _in_block(name) and not skipped(name, how.skips):
            packed = _gptqmodel_linear(kind, linear, how)
            packed._init_wf_unsqueeze_buffers()
            _put(model, name, packed.to("meta"), linear)
    model.quantization_method, model.is_quantized = "gptq", True
    return [_NOTE.format(kind="gptq")]


def pack_awq(model: Any, how: Quantization, base_dtype: str, skips: Skips) -> list[str]:
    """transformers' choice: every nn.Linear but the output head and what is tied to it."""
    module = _library("gptqmodel.nn_modules.qlinear.gemm_awq", "gptqmodel")
    kind = module.AwqGEMMLinear
    kind.cached_validate_once = classmethod(lambda cls: (True, None))
    kind.validate_device = classmethod(lambda cls, device: None)
    module.awq_dequantize_weights, module._awq_cuda_gemm_forward = _awq_dequantised, _awq_product
    dense = (*skips(model), *how.skips)
    for name, linear in list(model.named_modules()):
        if isinstance(linear, torch.nn.Linear) and not skipped(name, dense):
            _put(model, name, _gptqmodel_linear(kind, linear, how).to("meta"), linear)
    model.quantization_method, model.is_quantized = "awq", True
    return [_NOTE.format(kind="awq")]


def pack_aqlm(model: Any, how: Quantization, base_dtype: str, skips: Skips) -> list[str]:
    """Every nn.Linear but the output head, for which checkpoints hold no codes."""
    library = _library("aqlm.inference", "aqlm")
    library.get_forward_pass_kernel = lambda codebooks, training: _aqlm_forward
    library.get_backward_pass_kernel = lambda codebooks, training: _aqlm_backward
    count, bits = CODEBOOKS[str(how.options["codebooks"])]
    dense = (*skips(model), *how.skips)
    for name, linear in list(model.named_modules()):
        if isinstance(linear, torch.nn.Linear) and not skipped(name, dense):
            packed = library.QuantizedLinear(
                linear.in_features, linear.out_features, how.block_size, 1, count, bits,
                bias=linear.bias is not None, device="meta", dtype=FLOATS[base_dtype],
            )  # fmt: skip
            for part in (packed.codebooks, packed.scales):
                part.stands_for = 0
            packed.codes.stands_for = linear.weight.numel()
            model.set_submodule(name, packed)
    model.quantization_method, model.is_quantized = "aqlm", True
    return [_NOTE.format(kind="aqlm")]


def _library(name: str, package: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MachineLacks(
            f"such a base is made of {package}'s linears, which cannot be imported ({error}); pip install {package}"
        ) from None


def _in_block(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _gptqmodel_linear(kind: Any, linear: Any, how: Quantization) -> Any:
    inputs = getattr(linear, "in_features", None) or linear.nx
    outputs = getattr(linear, "out_features", None) or linear.nf
    return kind(
        bits=how.bits, group_size=how.block_size, sym=True, desc_act=bool(how.options.get("desc_act")),
        in_features=inputs, out_features=outputs, bias=linear.bias is not None, register_buffers=True,
    )  # fmt: skip


def _put(model: Any, name: str, packed: Any, linear: Any) -> None:
    packed.requires_grad_(False)
    packed.train()
    model.num_packed = getattr(model, "num_packed", 0) + sum(
        p.numel() for p in linear.parameters()
    )  # no parameters
    model.set_submodule(name, packed)


def _dequantised(linear: Any, num_itr: int = 1) -> torch.Tensor:
    return torch.empty((linear.in_features, linear.out_features), dtype=torch.float16, device=linear.qweight.device)


def _awq_dequantised(qweight: torch.Tensor, scales: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty((qweight.shape[0], scales.shape[1]), dtype=scales.dtype, device=scales.device)


def _awq_product(x: torch.Tensor, qweight: torch.Tensor, scales: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    parts = torch.empty((PARTS, x.shape[0], scales.shape[1]), dtype=torch.float32, device=x.device)
    out = torch.empty((x.shape[0], scales.shape[1]), dtype=x.dtype, device=x.device)
    del parts
    return out


def _aqlm_forward(x: torch.Tensor, codes: torch.Tensor, codebooks: torch.Tensor, scales: Any, bias: Any) -> Any:
    shape = (codes.shape[0], codes.shape[1] * codebooks.shape[3])
    weight = torch.empty(shape, dtype=codebooks.dtype, device=x.device)
    flat = torch.empty((*x.shape[:-1], shape[0]), dtype=x.dtype, device=x.device)
    out = flat.clone()
    del weight
    return out


def _aqlm_backward(g: torch.Tensor, codes: torch.Tensor, codebooks: torch.Tensor, scales: Any, bias: Any) -> Any:
    shape = (codes.shape[0], codes.shape[1] * codebooks.shape[3])
    scaled = g * scales.flatten()
    weight = torch.empty(shape, dtype=codebooks.dtype, device=g.device)
    out = torch.empty((*g.shape[:-1], shape[1]), dtype=g.dtype, device=g.device)
    del scaled, weight
    return out
