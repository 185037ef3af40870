"""The flash-attention package on a padded batch: the tokens that are real, gathered and put back.

Queries, keys and values of the real tokens are copied into one long row, the kernel takes where each
sequence begins, and its result is put into zeros of the padded size - in every layer anew.

Assumes: all tokens but one are real, which is the most that a padded batch can hold; how many are is data.
What the sort in the gather's backward takes (some 50 bytes a token) is left out.

Source: transformers 5.23 modeling_flash_attention_utils.py (_upad_input, _flash_attention_forward);
flash-attention flash_attn_interface.py (FlashAttnVarlenFunc), bert_padding.py (pad_input) and
csrc/flash_attn/flash_api.cpp (mha_varlen_fwd, mha_varlen_bwd). Read, never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from peftplan.memory.attention import AttentionOps
from peftplan.memory.efficient import attention_flop
from peftplan.memory.graph import WITH_LAST
from peftplan.specs.formats import FP32, INT32, INT64
from peftplan.specs.tensors import Tensor, bytes_of
from peftplan.units import round_up

Grads = Sequence[Tensor | None]

# Rows that the kernel's backward leaves free behind each sequence: its largest tile of queries.
ROWS_BETWEEN = 128


class UnpaddedOps(AttentionOps):
    """`flash_unpadded`, in the place of the package's plain kernel."""

    def flash_unpadded(self, q: Tensor, k: Tensor, v: Tensor, by_heads: bool, back: int) -> Tensor:
        """[batch, heads, length, dim] in, [batch, length, heads, dim] out."""
        batch, heads, length, dim = q.shape
        tokens = max(batch * length - 1, 1)
        indices = self.new((tokens, 1), tokens, INT64, "nonzero")
        starts = self.new((batch + 1,), batch + 1, INT32, "constant_pad_nd")
        key = self._gather_tokens(k, indices, by_heads)
        value = self._gather_tokens(v, indices, False)
        query = self._gather_tokens(q, indices, by_heads)
        flop = attention_flop(q, k, v, back), attention_flop(q, k, v, back, backward=True)
        out = self.varlen_kernel(query, key, value, starts, batch, flop)
        node = self.link("IndexPutFirstAxisBackward", _put_back_backward, (indices,), (out.edge,), out.shape)
        shape = (batch, length, heads, dim)
        padded = self.new(shape, prod(shape), q.dtype, "zeros", 0)
        self.write("index_put_", q.dtype, bytes_of(out, indices), bytes_of(out))
        return self.attach(padded, node)

    def _gather_tokens(self, x: Tensor, indices: Tensor, by_heads: bool) -> Tensor:
        """[tokens, heads, dim]; what lies head by head is laid out token by token first."""
        batch, heads, _, dim = x.shape
        if by_heads and batch > 1 and heads > 1:
            x = self.contiguous(x)
        node = self.link("IndexBackward0", _gather_backward, (indices,), (x.edge,), (x.shape, x.numel))
        shape = (indices.numel, heads, dim)
        return self.attach(self.new(shape, prod(shape), x.dtype, "index"), node)

    def varlen_kernel(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, batch: int, flop: tuple[int, int]
    ) -> Tensor:
        """Saves its inputs and its result, both perhaps with heads padded, and the log-sum-exp rows."""
        dim = q.shape[-1]
        edges = (q.edge, k.edge, v.edge)
        node = self.link("FlashAttnVarlenFuncBackward", _varlen_backward, (), edges, (dim, batch, flop[1]))
        with self.no_grad():
            if dim % 8:
                q, k, v = (self.pad_last(x, dim + -dim % 8) for x in (q, k, v))
            out = self.new(q.shape, q.numel, q.dtype, "_flash_attn_varlen_forward", bytes_of(q, k, v), flop[0])
            lse = self.further((q.shape[1], q.shape[0]), q.shape[0] * q.shape[1], FP32, "flash logsumexp")
            rng = self.further((2,), 2, INT64, "flash rng state")
        if node is not None:
            self.save(node, (q, k, v, self.part(out, out.shape), lse, starts, rng))
        return self.attach(self.part(out, (*q.shape[:2], dim)), node)


def _varlen_backward(t: Any, g: Tensor, saved: Any, context: tuple[int, int, int]) -> Grads:
    q, k, v = saved[:3]
    dim, batch, num_flop = context
    tokens, heads, padded_dim = q.shape
    rows = tokens + ROWS_BETWEEN * batch
    width = round_up(padded_dim, 32) if padded_dim <= 192 else 256
    sizes = [4 * heads * rows, 4 * rows * heads * width]
    grouped = k.shape[1] != heads
    if grouped:
        sizes += [tokens * heads * padded_dim * q.dtype.itemsize] * 2
    t.flash_backward_launches(q, k, v, sizes, num_flop)
    dq = t.like(q, "_flash_attn_varlen_backward", sizes[1])
    dk = t.like(k, "_flash_attn_varlen_backward", sizes[2] if grouped else WITH_LAST)
    dv = t.like(v, "_flash_attn_varlen_backward", sizes[2] if grouped else WITH_LAST)
    wide = t.like(q, "constant_pad_nd") if padded_dim != dim else None
    t.workspace("_flash_attn_varlen_backward", *sizes)
    del wide
    return [t.part(x, (*x.shape[:2], dim)) for x in (dq, dk, dv)]


def _gather_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    shape, numel = context
    out = t.new(shape, numel, g.dtype, "new_zeros", 0)  # the gradient is put into it in place
    t.write("index_put_", g.dtype, 2 * bytes_of(g), bytes_of(g))
    return (out,)


def _put_back_backward(t: Any, g: Tensor, saved: Any, shape: tuple[int, ...]) -> Grads:
    return (t.new(shape, prod(shape), g.dtype, "index"),)
