"""Attention kernels: which one scaled_dot_product_attention takes on CUDA, what it saves, its workspaces.

Sources: torch 2.13 aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (choice of kernel),
attention.cpp (masks, padding, the plain form), flash_attn/flash_api.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftplan.memory.efficient import EfficientOps, attention_flop, keys_back
from peftplan.memory.graph import WITH_LAST
from peftplan.memory.workspaces.attention import flash_backward_sizes, flash_forward_sizes
from peftplan.specs.formats import BF16, BOOL, FP16, FP32, INT64
from peftplan.specs.tensors import Tensor, bytes_of

Grads = Sequence[Tensor | None]

# On these GPUs the flash kernel trains no heads of more than 192 and up to 224 values.
_NO_FLASH_ABOVE_192 = ((8, 6), (8, 9), (12, 0), (12, 1))


def _flash_backward(t: Any, g: Tensor, saved: Any, back: int) -> Grads:
    return t.flash_gradients(*saved[:3], back)  # type: ignore[no-any-return]


def chosen_kernel(
    half: bool,
    dims: tuple[int, int, int],
    masked: bool,
    grouped: bool,
    trained: bool,
    capability: tuple[int, int],
    repeats: bool = True,
) -> str:
    """flash, efficient or math: torch's order of preference and each kernel's conditions.

    `half`: 16-bit inputs; `dims`: head widths of queries, keys and values; `grouped`: fewer heads of keys
    than of queries, which flash takes where it is told to repeat them (enable_gqa).
    Source: torch-sdpa (sdp_utils.cpp, sdp_utils_cpp.h).
    """
    if grouped and not repeats:
        return "math"
    dim, width = dims[0], dims[2]
    untrained = 192 < dim <= 224 and trained and capability in _NO_FLASH_ABOVE_192
    if not masked and half and dim == dims[1] == width <= 256 and capability >= (8, 0) and not untrained:
        return "flash"
    multiple = 8 if half else 4
    if not grouped and dim % multiple == 0 and width % multiple == 0:
        return "efficient"
    return "math"


class AttentionOps(EfficientOps):
    """scaled_dot_product_attention on CUDA."""

    attention_kernels: set[str]  # those that were taken

    def attention_kernel(self, q: Tensor, k: Tensor, v: Tensor, masked: bool, repeats: bool = True) -> str:
        """flash, efficient or math, for these tensors."""
        return chosen_kernel(
            half=q.dtype is BF16 or q.dtype is FP16,
            dims=(q.shape[-1], k.shape[-1], v.shape[-1]),
            masked=masked,
            grouped=q.shape[1] != k.shape[1],
            trained=q.edge is not None,
            capability=self.compute_capability,
            repeats=repeats,
        )

    def sdpa(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        dropout: float = 0.0,
        causal: bool = True,
        by_heads: bool = False,
        repeats: bool = True,
    ) -> Tensor:
        """Attention over [batch, heads, length, dim]; the result is laid out [batch, length, heads, dim].

        `by_heads` says that the queries lie head by head, not token by token: the flash kernel lays its
        result out as they are, and the caller's transpose then has to copy. `repeats` (enable_gqa): heads of
        keys and values are repeated where there are fewer of them; else one head is seen by all.
        """
        outer = self.autocast
        if outer is not None:  # casts its arguments, and runs what is inside without autocast
            if mask is not None and mask.dtype.is_float:
                mask = self.autocast_to(mask, outer)
            v, k, q = self.autocast_to(v, outer), self.autocast_to(k, outer), self.autocast_to(q, outer)
        kernel = self.attention_kernel(q, k, v, mask is not None, repeats)
        self.attention_kernels.add(kernel)
        if mask is not None and mask.dtype is BOOL:
            mask = self.additive_mask(mask, q)
        if kernel == "flash":
            return self._flash(q, k, v, by_heads, dropout, keys_back(q, k, causal))
        if kernel == "efficient":
            return self.efficient_attention(q, k, v, mask, causal)
        self.autocast = None
        out = self._math(q, k, v, mask, causal, dropout, by_heads, repeats)
        self.autocast = outer
        return self.contiguous(out)  # it is laid out by heads

    def additive_mask(self, mask: Tensor, like: Tensor) -> Tensor:
        """A boolean mask turned into zeros and minus infinities in the type of `like`."""
        return self.new(mask.shape, mask.numel, like.dtype, "where", mask.numel)

    def _flash(self, q: Tensor, k: Tensor, v: Tensor, by_heads: bool, dropout: float, back: int) -> Tensor:
        dim = q.shape[-1]
        pad = -dim % 8
        if pad:  # the kernel wants a multiple of eight: inputs are padded and the output is sliced
            q, k, v = (self.pad_last(x, dim + pad) for x in (q, k, v))
        out = self.flash_kernel(q, k, v, dropout, back)
        if pad:
            out = self.slice(out, (*q.shape[:3], dim))
        return self.contiguous(out) if pad or by_heads else out

    def flash_kernel(
        self, q: Tensor, k: Tensor, v: Tensor, dropout: float, back: int, package: bool = False
    ) -> Tensor:
        """The kernel itself: saves its inputs, its result, the log-sum-exp rows and the random state.

        The flash-attention package's kernel is the same, without torch's unused offset.
        """
        node = self.link("FlashAttentionBackward0", _flash_backward, (q, k, v), (q.edge, k.edge, v.edge), back)
        out, saved = self.flash_outputs(q, k, v, dropout, back, package)
        if node is not None:
            self.save(node, saved)
        return self.attach(out, node)

    def flash_outputs(
        self, q: Tensor, k: Tensor, v: Tensor, dropout: float, back: int, package: bool
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """The forward kernel's result, and what is saved of its outputs."""
        num_flop = attention_flop(q, k, v, back)
        out = self.new(q.shape, q.numel, q.dtype, "_flash_attention_forward", bytes_of(q, k, v), num_flop)
        rows = q.numel // q.shape[-1]
        lse = self.further(q.shape[:3], rows, FP32, "flash logsumexp")
        batch, heads, length, dim = q.shape
        dropped = dropout > 0.0 and self.training and self.drops
        sizes = flash_forward_sizes(batch, heads, length, k.shape[2], dim, self.compute_capability, dropped)
        self.workspace("_flash_attention_forward", *sizes)
        rng = self.further((2,), 2, INT64, "flash rng state")
        offset = None if package else self.further((), 1, INT64, "flash rng offset")
        return out, (_cut(out), lse, rng, offset)

    def flash_gradients(self, q: Tensor, k: Tensor, v: Tensor, back: int) -> tuple[Tensor, Tensor, Tensor]:
        """The backward kernel: three gradients, and its buffers, which go as it returns."""
        batch, heads, length, dim = q.shape
        kv_heads, kv_length = k.shape[1], k.shape[2]
        sizes = flash_backward_sizes(batch, heads, kv_heads, length, kv_length, dim, q.dtype.itemsize)
        self.flash_backward_launches(q, k, v, sizes, attention_flop(q, k, v, back, backward=True))
        dq = self.like(q, "_flash_attention_backward", sizes[1])
        dk = self.like(k, "_flash_attention_backward", sizes[2] if kv_heads != heads else WITH_LAST)
        dv = self.like(v, "_flash_attention_backward", sizes[2] if kv_heads != heads else WITH_LAST)
        self.workspace("_flash_attention_backward", *sizes)
        return dq, dk, dv

    def flash_backward_launches(self, q: Tensor, k: Tensor, v: Tensor, sizes: list[int], num_flop: int) -> None:
        """What comes before the kernels that write the gradients of queries, and of grouped keys and values.

        Row sums of gradient times output, which also clear dQ in fp32; the products, which add to it. Where
        keys have fewer heads those kernels sum what the products made for all heads; else dK and dV are theirs.
        Source: torch-sdpa, flash-attention (flash_bwd_launch_template.h).
        """
        op, dtype, size = "_flash_attention_backward", q.dtype, bytes_of(q)
        rows, sums, *spread = sizes
        self.write(op, dtype, 2 * size, rows + sums)
        self.write(op, dtype, 2 * size + bytes_of(k, v) + 2 * rows + sums, sums + sum(spread), num_flop)

    def _math(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        causal: bool,
        dropout: float,
        by_heads: bool,
        repeats: bool,
    ) -> Tensor:
        """The plain form in fp32: scaled queries times scaled keys, safe softmax, times values."""
        batch, heads, length, _ = q.shape
        kv_length, grouped, source = k.shape[2], k.shape[1] != heads, q.dtype
        high_q, high_k, high_v = self.to(q, FP32), self.to(k, FP32), self.to(v, FP32)
        scaled = self.mul_scalar(high_q)
        if mask is None and causal:
            mask = self._lower_triangle(length, kv_length, scaled)
        keys, values = high_k, high_v
        if grouped and repeats:
            keys = self.expand_copy(high_k, (batch, heads, *k.shape[2:]))
            values = self.expand_copy(high_v, (batch, heads, *v.shape[2:]))
        shape = (batch, heads, length, kv_length)
        copied = (not by_heads, not by_heads and not grouped)
        scores = self.matmul(scaled, self.mul_scalar(keys), shape, copied=copied)
        if mask is not None:
            self.write("add_", FP32, bytes_of(scores, mask), bytes_of(scores))
        weights = self._safe_softmax(scores)
        del scores
        # handed out beside the result, in the type that came in, and dropped by the caller
        returned = self.to_detached(weights, source) if source is not FP32 else None
        weights = self.dropout(weights, dropout)
        out_shape = (batch, heads, length, v.shape[-1])
        out = self.matmul(weights, values, out_shape, copied=(False, not grouped))
        out = self.to(out, source)
        del returned
        return out

    def _safe_softmax(self, scores: Tensor) -> Tensor:
        """Softmax that gives zeros where a whole row is masked: the test for it is a boolean matrix."""
        weights = self.softmax(scores)
        rows, size = scores.numel // scores.shape[-1], bytes_of(scores)
        self.write("eq", BOOL, size, scores.numel)
        self.write("all", BOOL, scores.numel, rows)
        self.write("where", scores.dtype, rows + size, size)
        self.workspace("_safe_softmax", scores.numel, rows, scores.dtype.itemsize)  # and the zero to put there
        return weights

    def _lower_triangle(self, length: int, kv_length: int, like: Tensor) -> Tensor:
        shape, numel = (length, kv_length), length * kv_length
        ones = self.new(shape, numel, BOOL, "ones", 0)
        lower = self.new(shape, numel, BOOL, "tril")
        del ones
        return self.additive_mask(lower, like)

    def repeat_heads(self, x: Tensor, heads: int) -> Tensor:
        """repeat_kv: every key or value head copied for each query head of its group; a single one is not."""
        if x.shape[1] == heads:
            return x
        shape = (x.shape[0], heads, *x.shape[2:])
        return self.expand(x, shape) if x.shape[1] == 1 else self.expand_copy(x, shape)


def _cut(x: Tensor) -> Tensor:
    return Tensor(x.shape, x.numel, x.dtype, x.storage, None)
