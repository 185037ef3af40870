"""Attention written out as BERT and T5 do it: no type is named for the softmax.

Source: transformers 5.23 modeling_bert.py and modeling_t5.py, eager_attention_forward.
"""

from __future__ import annotations

from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Tensor


def plain_attention(
    t: Ops, q: Tensor, k: Tensor, v: Tensor, biases: tuple[Tensor, ...] = (), dropout: float = 0.0
) -> Tensor:
    """Scores, scaled, plus biases; softmax; dropout; the weighted values laid out [batch, length, heads, dim]."""
    batch, heads, length, dim = q.shape
    weights = t.mul_scalar(t.matmul(q, k, (batch, heads, length, k.shape[2]), copied=(True, True)))
    for bias in biases:
        weights = t.add(weights, bias)
    weights = t.softmax(weights)
    weights = t.dropout(weights, dropout)
    t.block_weights.append(weights)  # handed back with the result, to the block itself
    out = t.matmul(weights, v, (batch, heads, length, dim), copied=(False, True))
    return t.relaid(out) if batch > 1 else t.contiguous(out)  # type: ignore[no-any-return]
