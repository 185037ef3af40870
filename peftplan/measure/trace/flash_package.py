"""A stand-in for the flash-attention package: its functions, with its own tensors, on fake ones.

transformers' code around it runs as it is; what the package allocates and saves is made here in its order, since
its kernels need a GPU. It stands in its place while a run lasts, whether the package is installed or not.

Source: flash-attention (flash_attn_interface.py, FlashAttnFunc and FlashAttnVarlenFunc; bert_padding.py;
csrc/flash_attn/flash_api.cpp), transformers-flash.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional

from peftplan.errors import BadInput
from peftplan.measure.trace.job import Job
from peftplan.memory.workspaces.attention import (
    flash_backward_sizes,
    flash_forward_sizes,
    flash_varlen_backward_sizes,
)

_ALIGNED = 8  # values of a head
_WIDEST = 256
_AVAILABLE = "is_flash_attn_2_available"
# What transformers remembers of the functions that it has imported.
_IMPORTED = (
    "_loaded_implementation",
    *("_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn", "_unpad_fn"),
    *("_process_flash_kwargs_fn", "_process_with_kvcache_kwargs_fn"),
)


class FlashPackage:
    """The package's functions; `tracker` is told of the kernels' buffers once there is one."""

    def __init__(self, compute_capability: tuple[int, int]) -> None:
        self.compute_capability = compute_capability
        self.tracker: Any = None

    def flash_attn_func(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        deterministic: bool = False,
    ) -> torch.Tensor:
        """[batch, length, heads, dim] in and out."""
        self._check(q)
        out: torch.Tensor = _Dense.apply(q, k, v, self, dropout_p)
        return out

    def flash_attn_varlen_func(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        deterministic: bool = False,
    ) -> torch.Tensor:
        """[tokens, heads, dim] in and out, sequences one behind another."""
        self._check(q)
        out: torch.Tensor = _Packed.apply(q, k, v, cu_seqlens_q, cu_seqlens_k, self)
        return out

    def flash_attn_with_kvcache(self, *_: Any, **__: Any) -> torch.Tensor:
        """For generation, which no training step does."""
        raise NotImplementedError("flash_attn_with_kvcache")

    def _check(self, q: torch.Tensor) -> None:
        if q.dtype not in (torch.float16, torch.bfloat16):
            raise BadInput(
                "--attention flash: the flash-attention package has no fp32 kernels; use a 16-bit base "
                "or --precision bf16-mixed, or take --attention sdpa"
            )
        if q.shape[-1] > _WIDEST:
            raise BadInput(
                f"--attention flash: the flash-attention package takes heads of up to {_WIDEST} values, this "
                f"model has {q.shape[-1]}; take --attention sdpa"
            )
        if self.compute_capability < (8, 0):
            raise BadInput(
                "--attention flash: the flash-attention package runs on GPUs of compute capability 8.0 and later; "
                "take --attention sdpa"
            )

    def buffers(self, sizes: list[int], operation: str) -> None:
        """What a kernel takes and gives back."""
        self.tracker.buffers(sizes, operation)


def _padded(*tensors: torch.Tensor) -> list[torch.Tensor]:
    rest = -tensors[0].shape[-1] % _ALIGNED
    return [functional.pad(tensor, (0, rest)) for tensor in tensors] if rest else list(tensors)


def _random_state(like: torch.Tensor) -> torch.Tensor:
    return torch.empty((2,), dtype=torch.int64, device=like.device)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, package: FlashPackage, dropout: float
    ) -> torch.Tensor:
        dim = q.shape[-1]
        q, k, v = _padded(q, k, v)
        out = torch.empty_like(q)
        batch, length, heads, width = q.shape
        rows = torch.empty((batch, heads, length), dtype=torch.float32, device=q.device)
        state = _random_state(q)
        capability = package.compute_capability
        sizes = flash_forward_sizes(batch, heads, length, k.shape[1], width, capability, dropout > 0)
        package.buffers(sizes, "_flash_attn_forward")
        if any(ctx.needs_input_grad[:3]):
            ctx.save_for_backward(q, k, v, out, rows, state)
        ctx.package = package
        return out[..., :dim]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        q, k, v = ctx.saved_tensors[:3]
        made = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dim = grad.shape[-1]
        (grad,) = _padded(grad)
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        batch, length, heads, width = q.shape
        sizes = flash_backward_sizes(batch, heads, k.shape[2], length, k.shape[1], width, q.element_size())
        ctx.package.buffers(sizes, "_flash_attn_backward")
        return (*(part[..., :dim] for part in made), None, None)


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        starts_q: torch.Tensor,
        starts_k: torch.Tensor,
        package: FlashPackage,
    ) -> torch.Tensor:
        dim = q.shape[-1]
        q, k, v = _padded(q, k, v)
        out = torch.empty_like(q)
        rows = torch.empty((q.shape[1], q.shape[0]), dtype=torch.float32, device=q.device)
        state = _random_state(q)
        if any(ctx.needs_input_grad[:3]):
            ctx.save_for_backward(q, k, v, out, rows, starts_q, starts_k, state)
        ctx.package = package
        return out[..., :dim]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        q, k, v, _, _, starts_q = ctx.saved_tensors[:6]
        made = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dim = grad.shape[-1]
        (grad,) = _padded(grad)
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        tokens, heads, width = q.shape
        sizes = flash_varlen_backward_sizes(
            tokens, starts_q.shape[0] - 1, heads, k.shape[1], width, q.element_size()
        )
        ctx.package.buffers(sizes, "_flash_attn_varlen_backward")
        return (*(part[..., :dim] for part in made), None, None, None)


class _PutBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, indices: torch.Tensor, rows: int) -> torch.Tensor:
        ctx.save_for_backward(indices)
        out = torch.zeros((rows, *values.shape[1:]), device=values.device, dtype=values.dtype)
        out[indices] = values
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        return grad[indices], None, None


def _pad_input(hidden: torch.Tensor, indices: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    out: torch.Tensor = _PutBack.apply(hidden, indices, batch * length)
    return out.view(batch, length, *out.shape[1:])


@contextmanager
def installed(job: Job) -> Iterator[FlashPackage]:
    """The stand-in where `import flash_attn` looks, if the run asks for it; transformers finds it available."""
    package = FlashPackage(job.compute_capability)
    if job.attention != "flash":
        yield package
        return
    with ExitStack() as stack:
        main, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
        for name in ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"):
            setattr(main, name, getattr(package, name))
        utils = import_module("transformers.modeling_flash_attention_utils")
        setattr(padding, "pad_input", _pad_input)  # noqa: B010 - a module made here
        setattr(padding, "unpad_input", getattr(utils, "_unpad_input", None))  # noqa: B010
        for module in (main, padding):
            module.__spec__ = ModuleSpec(module.__name__, None)
            _replace_item(stack, sys.modules, module.__name__, module)
        for name, module in list(sys.modules.items()):
            if name.startswith("transformers") and _AVAILABLE in vars(module):
                _replace_item(stack, vars(module), _AVAILABLE, lambda *_, **__: True)
        known = getattr(utils, "FLASH_ATTENTION_COMPATIBILITY_MATRIX", {}).get(2, {})
        for check in ("general_availability_check", "pkg_availability_check"):
            if check in known:
                _replace_item(stack, known, check, lambda *_, **__: True)
        for name in _IMPORTED:
            if name in vars(utils):
                _replace_item(stack, vars(utils), name, None)
        yield package


def _replace_item(stack: ExitStack, table: dict[str, Any], name: str, value: Any) -> None:
    """Put an entry for as long as the stack lives."""
    if name in table:
        stack.callback(table.__setitem__, name, table[name])
    else:
        stack.callback(table.pop, name, None)
    table[name] = value
