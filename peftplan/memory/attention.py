"""Attention kernels: which one scaled_dot_product_attention takes on CUDA, what it saves, its workspaces.

Sources: torch 2.13 aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (choice of kernel),
flash_attn/flash_api.cpp (softmax_d, dq_accum, expanded dk and dv of grouped queries),
transformers 5.23 integrations/sdpa_attention.py (when heads are repeated).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from peftplan.memory.matrix import MatrixOps
from peftplan.specs.formats import BF16, BOOL, FP16, FP32, INT64
from peftplan.specs.tensors import Tensor
from peftplan.units import round_up

Grads = Sequence[Tensor | None]


def _flash_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    q, k, v = saved[:3]
    padded = context
    batch, heads, length, dim = q.shape
    kv_heads, kv_length = k.shape[1], k.shape[2]
    dq = t.like(q, "_flash_attention_backward")
    dk = t.like(k, "_flash_attention_backward")
    dv = t.like(v, "_flash_attention_backward")
    rows = round_up(length, 128)
    sizes = [batch * heads * rows * 4, batch * rows * heads * round_up(dim, 32) * 4]
    if kv_heads != heads:
        sizes += [batch * kv_length * heads * dim * q.dtype.itemsize] * 2
    t.workspace("_flash_attention_backward", *sizes)
    del padded
    return (dq, dk, dv)


def _efficient_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    q, k, v = saved[:3]
    batch, heads, length, dim = q.shape
    dq = t.like(q, "_efficient_attention_backward")
    dk = t.like(k, "_efficient_attention_backward")
    dv = t.like(v, "_efficient_attention_backward")
    bias_shape = context
    grad_bias = t.new(bias_shape, prod(bias_shape), q.dtype, "grad bias") if bias_shape else None
    t.workspace(
        "_efficient_attention_backward",
        batch * heads * length * 4,
        batch * heads * round_up(length, 64) * round_up(dim, 64) * 4,
    )
    return (dq, dk, dv, grad_bias)


class AttentionOps(MatrixOps):
    """scaled_dot_product_attention on CUDA."""

    compute_capability: tuple[int, int] = (8, 0)

    def attention_kernel(self, q: Tensor, k: Tensor, v: Tensor, masked: bool) -> str:
        """flash, efficient or math: torch's order of preference and each kernel's conditions."""
        half = q.dtype is BF16 or q.dtype is FP16
        dim = q.shape[-1]
        same = dim == k.shape[-1] == v.shape[-1]
        if not masked and half and same and dim <= 256 and self.compute_capability >= (8, 0):
            return "flash"
        multiple = 8 if half else 4
        grouped = q.shape[1] != k.shape[1]
        if not grouped and dim % multiple == 0 and v.shape[-1] % multiple == 0:
            return "efficient"
        return "math"

    def sdpa(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        dropout: float = 0.0,
        causal: bool = True,
    ) -> Tensor:
        """Attention over [batch, heads, length, dim] tensors; the result is laid out [batch, length, heads, dim]."""
        if self.autocast is not None:
            q, k, v = (self.autocast_to(x, self.autocast) for x in (q, k, v))
            if mask is not None and mask.dtype.is_float:
                mask = self.autocast_to(mask, self.autocast)
        kernel = self.attention_kernel(q, k, v, mask is not None)
        if kernel == "flash":
            return self._flash(q, k, v)
        if kernel == "efficient":
            return self._efficient(q, k, v, mask)
        return self._math(q, k, v, mask, causal)

    def _flash(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dim = q.shape[-1]
        pad = -dim % 8
        if pad:  # the kernel wants a multiple of eight: inputs are padded and the output is sliced
            q, k, v = (self._pad_last(x, dim + pad) for x in (q, k, v))
        batch, heads, length, _ = q.shape
        node = self.link(
            "ScaledDotProductFlashAttentionBackward0",
            _flash_backward,
            (q, k, v),
            (q.edge, k.edge, v.edge),
        )
        out = self.like(q, "_scaled_dot_product_flash_attention")
        rows = batch * heads * length
        lse = self.new((batch, heads, length), rows, FP32, "flash logsumexp")
        rng = self.new((2,), 2, INT64, "flash rng state")
        offset = self.new((), 1, INT64, "flash rng offset")
        if node is not None:
            self.save(node, (_cut(out), lse, rng, offset))
        out = self.attach(out, node)
        if pad:
            out = self.slice(out, (batch, heads, length, dim))
            out = self.contiguous(out)
        return out

    def _pad_last(self, x: Tensor, dim: int) -> Tensor:
        shape = (*x.shape[:-1], dim)
        node = self.link("ConstantPadNdBackward0", _pad_backward, (), (x.edge,), x.shape)
        return self.attach(self.new(shape, prod(shape), x.dtype, "constant_pad_nd"), node)

    def _efficient(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, _ = q.shape
        bias = None
        if mask is not None:
            bias = mask if mask.dtype.is_float else self.elementwise_result_as(mask, q)
        mask_edge = bias.edge if bias is not None else None
        node = self.link(
            "ScaledDotProductEfficientAttentionBackward0",
            _efficient_backward,
            (q, k, v, bias),
            (q.edge, k.edge, v.edge, mask_edge),
            bias.shape if bias is not None and mask_edge is not None else None,
        )
        shape = (batch, heads, length, v.shape[-1])
        out = self.new(shape, prod(shape), q.dtype, "_scaled_dot_product_efficient_attention")
        if node is not None:  # the log-sum-exp rows are computed only for backward
            rows = batch * heads * round_up(length, 32)
            lse = self.new((batch, heads, length), rows, FP32, "efficient logsumexp")
            seed = self.new((), 1, INT64, "efficient rng seed")
            offset = self.new((), 1, INT64, "efficient rng offset")
            self.save(node, (_cut(out), lse, seed, offset))
        return self.attach(out, node)

    def elementwise_result_as(self, mask: Tensor, q: Tensor) -> Tensor:
        """A boolean mask turned into an additive one in the type of the queries."""
        return self.new(mask.shape, mask.numel, q.dtype, "masked_fill")

    def _math(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        batch, heads, length, _ = q.shape
        kv_length = k.shape[2]
        q = self.mul_scalar(q)
        if mask is None and causal:
            mask = self._causal_mask(length, kv_length, q)
        k, v = self.repeat_heads(k, heads), self.repeat_heads(v, heads)
        k = self.mul_scalar(k)
        scores = self.matmul(q, k, (batch, heads, length, kv_length))
        if mask is not None:
            scores = self.add(scores, mask)
        weights = self.softmax(scores)
        del scores
        out = self.matmul(weights, v, (batch, heads, length, v.shape[-1]))
        return self.contiguous(out)  # laid out by heads; the caller's transpose has to copy

    def _causal_mask(self, length: int, kv_length: int, q: Tensor) -> Tensor:
        shape, numel = (length, kv_length), length * kv_length
        ones = self.new(shape, numel, BOOL, "ones")
        lower = self.new(shape, numel, BOOL, "tril")
        del ones
        mask = self.new(shape, numel, q.dtype, "where")
        del lower
        return mask

    def repeat_heads(self, x: Tensor, heads: int) -> Tensor:
        """repeat_kv: every key or value head copied for each query head of its group."""
        if x.shape[1] == heads:
            return x
        return self.expand_copy(x, (x.shape[0], heads, *x.shape[2:]))


def _cut(x: Tensor) -> Tensor:
    return Tensor(x.shape, x.numel, x.dtype, x.storage, None)


def _pad_backward(t: Any, g: Tensor, saved: Any, shape: tuple[int, ...]) -> Grads:
    return (t.part(g, shape),)
