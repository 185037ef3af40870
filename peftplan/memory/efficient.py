"""The memory-efficient attention kernel: what it saves, and the workspaces of its forward and backward.

Sources: torch 2.13 aten/src/ATen/native/transformers/cuda/attention.cu, attention_backward.cu,
mem_eff_attention/kernel_forward.h, kernel_backward.h, attention.cpp (padding of the mask).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from peftplan.memory.graph import WITH_LAST
from peftplan.memory.matrix import MatrixOps
from peftplan.memory.workspaces.attention import backward_workspace_bytes as backward_workspace_bytes
from peftplan.memory.workspaces.attention import efficient_forward_sizes
from peftplan.specs.formats import FP32
from peftplan.specs.tensors import Tensor, bytes_of
from peftplan.units import round_up

Grads = Sequence[Tensor | None]


def keys_back(q: Tensor, k: Tensor, causal: bool, window: int | None = None) -> int:
    """How many keys a query sees at most, its own the last of them; 0: all, before and behind."""
    length = q.shape[2]
    if not causal or length != k.shape[2]:
        return 0
    return length if window is None else min(window, length)


def attention_flop(q: Tensor, k: Tensor, v: Tensor, back: int, backward: bool = False) -> int:
    """Products of a fused kernel [flop]: two forward; five backward, which makes the scores again.

    A kernel passes over the keys behind a query and those before its window (`back`, see `keys_back`): of n**2
    pairs of positions n (n + 1) / 2 remain, or n w - w (w - 1) / 2. An additive mask hides nothing from it.
    Assumes: no tile is cut, as those on the diagonal are.
    Source: flash-attention-2 (section 4.1: forward, backward 2.5 times as many, half with a causal mask),
    torch-flop-counter.
    """
    batch, heads, length, dim = q.shape
    pairs_twice = back * (back + 1) + 2 * (length - back) * back if back else 2 * length * k.shape[2]
    width = v.shape[-1]
    return batch * heads * pairs_twice * (3 * dim + 2 * width if backward else dim + width)


def _pad_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    shape, numel = context
    return (t.new(shape, numel, g.dtype, "constant_pad_nd"),)


def _efficient_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    bias_shape, back = context
    q, k, v, bias, out, lse = saved
    batch, heads, length, dim = q.shape
    t.write("_efficient_attention_backward", FP32, bytes_of(g, out), 4 * batch * heads * length)  # row sums
    num_flop = attention_flop(q, k, v, back, backward=True)
    read = bytes_of(q, k, v, bias, g, lse) + 4 * batch * heads * length
    dq = t.new(q.shape, q.numel, q.dtype, "_efficient_attention_backward", read, num_flop)
    dk = t.like(k, "_efficient_attention_backward", WITH_LAST)
    dv = t.like(v, "_efficient_attention_backward", WITH_LAST)
    grad_bias = None
    if bias_shape:
        numel = prod(bias_shape[:-1]) * round_up(bias_shape[-1], 16)
        grad_bias = t.further(bias_shape, numel, q.dtype, "grad bias")
    rows = (batch, heads, length)
    half = q.dtype is not FP32
    if half:
        delta = t.further(rows, prod(rows), FP32, "attention delta")
    else:  # the fp32 kernels are handed the row sums of gradient times output
        product = t.like(v if v.numel == g.numel else g, "mul", bytes_of(g, out))
        total = t.new(rows, prod(rows), FP32, "sum", bytes_of(product))
        delta = t.new(rows, prod(rows), FP32, "attention delta")
        del product, total
    width = max(dim, v.shape[-1])
    size = backward_workspace_bytes(batch, heads, length, k.shape[2], width, half, t.compute_capability)
    t.workspace("_efficient_attention_backward", size)
    del delta
    return (dq, dk, dv, grad_bias)


class EfficientOps(MatrixOps):
    """Memory-efficient attention, forward and backward."""

    def efficient_attention(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool = True
    ) -> Tensor:
        """Attention with an additive mask or none.

        Saves its inputs, the mask, its result and the log-sum-exp rows; the seed and the offset of its
        random numbers are tensors on the host.
        """
        batch, heads, length, _ = q.shape
        back = keys_back(q, k, causal and bias is None)
        if bias is not None:
            bias = self.expand(self._aligned(bias), (batch, heads, length, k.shape[2]))
        bias_edge = bias.edge if bias is not None else None
        node = self.link(
            "EfficientAttentionBackward0",
            _efficient_backward,
            (q, k, v, bias),
            (q.edge, k.edge, v.edge, bias_edge),
            (bias.shape if bias is not None and bias_edge is not None else None, back),
        )
        shape = (batch, heads, length, v.shape[-1])
        num_flop = attention_flop(q, k, v, back)
        out = self.new(
            shape, prod(shape), q.dtype, "_efficient_attention_forward", bytes_of(q, k, v, bias), num_flop
        )
        lse = None
        if node is not None:  # the log-sum-exp rows are computed only for backward
            rows = round_up(length, 32)
            lse = self.further((batch, heads, rows), batch * heads * rows, FP32, "efficient logsumexp")
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
        return self.attach(self.new(shape, prod(shape), x.dtype, "constant_pad_nd", bytes_of(x)), node)
