"""Position biases (ALiBi) of Bloom and Falcon-RW, made once a step outside the graph.

Source: transformers 5.23 modeling_bloom.py and modeling_falcon.py, build_alibi_tensor.
"""

from __future__ import annotations

from peftplan.specs.formats import BOOL, FP32, INT64, DType
from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Tensor


def position_biases(t: Ops, ids: Tensor, heads: int, computed: DType, dtype: DType) -> Tensor:
    """Slope of the head times position of the token: [batch, heads, 1, length], cast to `dtype` at last."""
    batch, length = ids.shape
    slopes = t.new((heads,), heads, FP32, "pow")
    count = t.new(ids.shape, ids.numel, INT64, "cumsum")
    before = t.new(ids.shape, ids.numel, INT64, "sub")
    del count
    places = t.new(ids.shape, ids.numel, INT64, "mul")
    del before
    shape = (batch, heads, 1, length)
    out: Tensor = t.to(t.new(shape, batch * heads * length, computed, "mul"), dtype)
    del slopes, places
    return out


def biased_mask(t: Ops, alibi: Tensor, mask: Tensor) -> Tensor:
    """Falcon's: the causal mask with the scaled biases filled in, one for every head."""
    batch, heads, _, length = alibi.shape
    dtype = alibi.dtype
    if mask.dtype is BOOL:
        mask = t.new(mask.shape, mask.numel, dtype, "where")
    scaled = t.new(alibi.shape, alibi.numel, dtype, "div")
    below = t.new(mask.shape, mask.numel, BOOL, "lt")
    numel = batch * heads * length * length
    out: Tensor = t.new((batch, heads, length, length), numel, dtype, "masked_fill")
    del scaled, below
    return out
