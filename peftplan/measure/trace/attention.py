"""scaled_dot_product_attention as CUDA runs it: the choice of kernel, and its casts and paddings.

On fake tensors torch would take the plain form, since no kernel is built; here the choice is made for the
GPU that is pretended, and the kernel's own operation is called, whose saved tensors are torch's.

Source: torch-sdpa (sdp_utils.cpp, attention.cpp).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from peftplan.memory.attention import chosen_kernel

aten = torch.ops.aten
_ALIGNED = 8  # values: rows of a mask, and heads of the flash kernel


class Attention:
    """Stands in for torch's function while a trace runs; `kernels` collects which ones were taken."""

    def __init__(self, compute_capability: tuple[int, int], device: str) -> None:
        self.compute_capability = compute_capability
        self.device = device
        self.kernels: set[str] = set()
        self._casts: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """In torch's place."""
        original, clear = functional.scaled_dot_product_attention, torch.clear_autocast_cache

        def clear_both() -> None:
            self._casts.clear()
            clear()

        functional.scaled_dot_product_attention = self.__call__
        torch.clear_autocast_cache = clear_both
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = original
            torch.clear_autocast_cache = clear

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """[batch, heads, length, dim] in and out."""
        if self.device != "meta" and torch.is_autocast_enabled(self.device):
            dtype = torch.get_autocast_dtype(self.device)
            value, key, query = (self._cast(t, dtype) for t in (value, key, query))  # autocast casts last to first
            attn_mask = self._cast(attn_mask, dtype) if attn_mask is not None else None
            with torch.autocast(self.device, enabled=False):
                return self._run(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        return self._run(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)

    def _cast(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """As autocast casts: leaves that want a gradient once, until the outermost region of autocast ends."""
        if not tensor.is_floating_point() or tensor.dtype in (torch.float64, dtype):
            return tensor
        cached = tensor.requires_grad and tensor.is_leaf and not tensor._is_view()
        if not cached or tensor.dtype is not torch.float32 or not torch.is_autocast_cache_enabled():
            return tensor.to(dtype)
        known = self._casts.get(id(tensor))
        if known is None or known[0]() is not tensor:
            known = self._casts[id(tensor)] = (weakref.ref(tensor), tensor.to(dtype))
        return known[1]

    def _run(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        dropout: float,
        causal: bool,
        scale: float | None,
        grouped: bool,
    ) -> torch.Tensor:
        kernel = chosen_kernel(
            half=query.dtype in (torch.float16, torch.bfloat16),
            dims=(query.shape[-1], key.shape[-1], value.shape[-1]),
            masked=mask is not None,
            grouped=query.shape[1] != key.shape[1],
            trained=query.requires_grad,
            capability=self.compute_capability,
            repeats=grouped,
        )
        if kernel == "flash" and causal and query.shape[-2] != key.shape[-2]:
            kernel = "math"  # the kernel aligns a causal mask elsewhere
        self.kernels.add(kernel)
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, torch.full((), -math.inf, dtype=query.dtype, device=mask.device))
        if kernel == "flash":
            return _flash(query, key, value, dropout, causal, scale)
        if kernel == "efficient":
            return _efficient(query, key, value, mask, dropout, causal, scale)
        with _MaskAddedInPlace():
            out = aten._scaled_dot_product_attention_math(
                query, key, value, mask, dropout, causal, None, scale=scale, enable_gqa=grouped
            )[0]
        assert isinstance(out, torch.Tensor)
        return out


class _MaskAddedInPlace(TorchDispatchMode):
    """The plain form's one sum: to plain tensors it adds the mask in place, to fake ones out of place."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not aten.add.Tensor:
            return func(*args, **kwargs or {})
        aten.add_.Tensor(*args, **kwargs or {})
        return aten.alias.default(args[0])


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, causal: bool, scale: float | None
) -> Any:
    dim = query.shape[-1]
    scale = scale if scale is not None else 1 / math.sqrt(dim)
    pad = -dim % _ALIGNED
    if pad:
        query, key, value = (functional.pad(tensor, (0, pad)) for tensor in (query, key, value))
    out = aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, False, scale=scale)[0]
    return out[..., :dim] if pad else out


def _efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
) -> Any:
    if mask is not None:
        length = mask.shape[-1]
        if length % _ALIGNED:
            mask = functional.pad(mask, (0, -length % _ALIGNED))[..., :length]
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    needs_rows = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    run: Callable[..., Any] = aten._scaled_dot_product_efficient_attention
    return run(query, key, value, mask, needs_rows, dropout, causal, scale=scale)[0]
