"""Attention written out as BERT and T5 do it: no type is named for the softmax.

Source: transformers 5.23 modeling_bert.py and modeling_t5.py, eager_attention_forward; torch 2.13
LinearAlgebra.cpp (matmul folds batch and heads, which copies what is not laid out by heads).
"""

from __future__ import annotations

from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Tensor


def plain_attention(
    t: Ops, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Scores, scaled, plus a bias; softmax; dropout; the weighted values laid out [batch, length, heads, dim]."""
    batch, heads, length, dim = q.shape
    shape = (batch, heads, length, k.shape[2])
    weights = t.mul_scalar(t.matmul(folded(t, q), folded(t, k), shape))
    if bias is not None:
        weights = t.add(weights, bias)
    weights = t.softmax(weights)
    weights = t.dropout(weights, dropout)
    out = t.matmul(weights, folded(t, v), (batch, heads, length, dim))
    out = t.contiguous(out)
    return out  # type: ignore[no-any-return]


def folded(t: Ops, x: Tensor) -> Tensor:
    """Queries, keys or values as matmul takes them: copied unless the batch is one."""
    x = t.autocast_to(x, t.autocast)
    return t.contiguous(x) if x.shape[0] > 1 else x  # type: ignore[no-any-return]
