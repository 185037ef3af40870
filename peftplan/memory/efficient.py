"""The memory-efficient attention kernel: what it saves, and the workspaces of its forward and backward.

Sources: torch 2.13 aten/src/ATen/native/transformers/cuda/attention.cu, attention_backward.cu,
mem_eff_attention/kernel_forward.h, kernel_backward.h, attention.cpp (padding of the mask).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from peftplan.memory.matrix import MatrixOps
from peftplan.memory.workspaces.attention import backward_workspace_bytes as backward_workspace_bytes
from peftplan.memory.workspaces.attention import efficient_forward_sizes
from peftplan.specs.formats import FP32
from peftplan.specs.tensors import Tensor
from peftplan.units import round_up

Grads = Sequence[Tensor | None]


def _pad_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    shape, numel = context
    return (t.new(shape, numel, g.dtype, "constant_pad_nd"),)


def _efficient_backward(t: Any, g: Tensor, saved: Any, bias_shape: Any) -> Grads:
    q, k, v = saved[:3]
    batch, heads, length, dim = q.shape
    dq = t.like(q, "_efficient_attention_backward")
    dk = t.like(k, "_efficient_attention_backward")
    dv = t.like(v, "_efficient_attention_backward")
    grad_bias = None
    if bias_shape:
        numel = prod(bias_shape[:-1]) * round_up(bias_shape[-1], 16)
        grad_bias = t.new(bias_shape, numel, q.dtype, "grad bias")
    rows = (batch, heads, length)
    half = q.dtype is not FP32
    if half:
        delta = t.new(rows, prod(rows), FP32, "attention delta")
    else:  # the fp32 kernels are handed the row sums of gradient times output
        product = t.like(v if v.numel == g.numel else g, "mul")
        total = t.new(rows, prod(rows), FP32, "sum")
        delta = t.new(rows, prod(rows), FP32, "attention delta")
        del product, total
    width = max(dim, v.shape[-1])
    size = backward_workspace_bytes(batch, heads, length, k.shape[2], width, half, t.compute_capability)
    t.workspace("_efficient_attention_backward", size)
    del delta
    return (dq, dk, dv, grad_bias)


class EfficientOps(MatrixOps):
    """Memory-efficient attention, forward and backward."""

    def efficient_attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Attention with an additive mask or none.

        Saves its inputs, the mask, its result and the log-sum-exp rows; the seed and the offset of its
        random numbers are tensors on the host.
        """
        batch, heads, length, _ = q.shape
        if bias is not None:
            bias = self.expand(self._aligned(bias), (batch, heads, length, k.shape[2]))
        bias_edge = bias.edge if bias is not None else None
        node = self.link(
            "EfficientAttentionBackward0",
            _efficient_backward,
            (q, k, v, bias),
            (q.edge, k.edge, v.edge, bias_edge),
            bias.shape if bias is not None and bias_edge is not None else None,
        )
        shape = (batch, heads, length, v.shape[-1])
        out = self.new(shape, prod(shape), q.dtype, "_efficient_attention_forward")
        lse = None
        if node is not None:  # the log-sum-exp rows are computed only for backward
            rows = round_up(length, 32)
            lse = self.new((batch, heads, rows), batch * heads * rows, FP32, "efficient logsumexp")
        half = q.dtype is not FP32
        sums = efficient_forward_sizes(batch, heads, length, q.shape[-1], v.shape[-1], half)
        self.workspace("_efficient_attention_forward", *sums)
        if node is not None:
            saved = Tensor(out.shape, out.numel, out.dtype, out.storage, None)
            self.save(node, (saved, lse))
        return self.attach(out, node)

    def _aligned(self, bias: Tensor) -> Tensor:
        """The mask with rows at multiples of eight values: padded, and sliced back, where they are not."""
        rest = bias.shape[-1] % 8
        if not rest:
            return bias
        shape = (*bias.shape[:-1], bias.shape[-1] + 8 - rest)
        padded = self.pad_last(bias, shape[-1])
        return self.slice(padded, bias.shape) if padded.edge is not None else self.part(padded, bias.shape)

    def pad_last(self, x: Tensor, dim: int) -> Tensor:
        """F.pad of the last dimension up to `dim`."""
        shape = (*x.shape[:-1], dim)
        node = self.link("ConstantPadNdBackward0", _pad_backward, (), (x.edge,), (x.shape, x.numel))
        return self.attach(self.new(shape, prod(shape), x.dtype, "constant_pad_nd"), node)
