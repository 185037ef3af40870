"""Attention masks as transformers built them before 4.53: numbers to add, in the type of the hidden states.

Source: transformers 4.51 modeling_llama.py (_prepare_4d_causal_attention_mask_with_cache_position) and
modeling_attn_mask_utils.py (_unmask_unattended), modeling_gemma2.py (windows, made in the layers).
"""

from __future__ import annotations

from peftplan.specs.formats import BOOL, DType
from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Tensor


def float_mask(t: Ops, batch: int, length: int, dtype: DType, unmasks: bool) -> Tensor:
    """Zeros and very negative numbers [batch, 1, length, length].

    `unmasks`: rows in which everything is masked are then made to see all, which copies the mask.
    """
    square, squares = (length, length), length * length
    shape, numel = (batch, 1, length, length), batch * length * length
    base = t.new(square, squares, dtype, "full")
    base = t.new(square, squares, dtype, "triu")
    after = t.new(square, squares, BOOL, "gt")  # and multiplied in place
    del after
    mask: Tensor = t.new(shape, numel, dtype, "clone")
    del base
    hidden = t.new(shape, numel, dtype, "add")
    hidden = t.new(shape, numel, BOOL, "eq")
    filled = t.new(shape, numel, dtype, "masked_fill")  # and copied back
    del filled, hidden
    if unmasks:
        least = t.new(shape, numel, BOOL, "eq")
        rows = t.new((batch, 1, length, 1), batch * length, BOOL, "all")
        del least
        seen = t.new(rows.shape, rows.numel, BOOL, "bitwise_not")
        del rows
        mask = t.new(shape, numel, dtype, "mul")
        del seen
    return mask


def windowed_copy(t: Ops, mask: Tensor) -> Tensor:
    """The model's mask with a window, made anew by every layer that has one."""
    ones = t.new(mask.shape, mask.numel, BOOL, "ones_like")
    before: Tensor = t.new(mask.shape, mask.numel, BOOL, "tril")
    del ones
    out: Tensor = t.new(mask.shape, mask.numel, mask.dtype, "where")
    return out
