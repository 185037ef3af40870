"""Attention masks as transformers builds them, once a step, outside the graph.

Source: transformers 5.23 masking_utils.py (sdpa_mask, compared element by element over aranges; eager_mask,
the same turned into numbers to add; flash_attention_mask, the batch's own mask; _ignore_causal_mask_sdpa). A
causal mask without padding is left to the kernel's own flag under sdpa; a sequence that reaches a layer's
window needs a mask.
"""

from __future__ import annotations

from peftplan.arch.former_masks import float_mask
from peftplan.specs.formats import BOOL, DType
from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Tensor


def attention_mask(
    t: Ops, batch: int, length: int, dtype: DType, window: int | None = None, always: bool = False
) -> Tensor | None:
    """The mask of layers that see everything before (`window` None) or so many keys; None where none is made.

    `always`: the family asks for one where the kernel's causal flag would do.
    """
    needed = always or t.padding or t.prefix_length or (window is not None and length >= window)
    if t.attention == "eager":
        return numbers_mask(t, batch, length, dtype, window is not None)
    if t.attention == "flash":
        return padding_mask(t, batch, length)
    if needed and t.behaviour.float_masks:
        return float_mask(t, batch, length, dtype, unmasks=not always)
    if needed:
        return _allowed(t, batch, length, windowed=window is not None)
    return None


def padding_mask(t: Ops, batch: int, length: int) -> Tensor | None:
    """The batch's own mask as booleans [batch, length], where it hides anything."""
    return t.new((batch, length), batch * length, BOOL, "_to_copy") if t.padding else None


def numbers_mask(t: Ops, batch: int, length: int, dtype: DType, windowed: bool = False) -> Tensor:
    """Zeros and very negative numbers to add to scores, as attention written out takes them."""
    if t.behaviour.float_masks:
        return float_mask(t, batch, length, dtype, unmasks=False)
    allowed = _allowed(t, batch, length, windowed)
    return t.new(allowed.shape, allowed.numel, dtype, "where")  # type: ignore[no-any-return]


def unpadded_mask(t: Ops, ids: Tensor, dtype: DType) -> Tensor | None:
    """The causal mask of layers that are handed no mask of the batch: none but for attention written out."""
    batch, length = ids.shape
    if t.attention != "eager":
        return None
    seen = _before(t, length)
    out: Tensor = t.new((batch, *seen.shape[1:]), batch * seen.numel, dtype, "where")
    return out


def both_ways_mask(t: Ops, ids: Tensor, dtype: DType) -> Tensor | None:
    """The mask of layers that see everything: [batch, 1, length, length], none where nothing is padded."""
    batch, length = ids.shape
    padding = t.new(ids.shape, ids.numel, BOOL, "_to_copy")
    if not t.padding:
        whole = t.new((), 1, BOOL, "all")
        del padding, whole
        return None
    if t.attention == "flash":
        return padding  # type: ignore[no-any-return]
    shape, numel = (batch, 1, length, length), batch * length * length
    seen: Tensor = t.new(shape, numel, BOOL, "bitwise_and")
    del padding
    return t.new(shape, numel, dtype, "where") if t.attention == "eager" else seen


def _before(t: Ops, length: int) -> Tensor:
    """Which keys stand before each query: [1, 1, length, keys], one byte each."""
    keys = length + t.prefix_length
    shape, numel = (1, 1, length, keys), length * keys
    before = t.new(shape, numel, BOOL, "le")
    seen: Tensor = t.new(shape, numel, BOOL, "bitwise_and")
    del before
    return seen


def _allowed(t: Ops, batch: int, length: int, windowed: bool) -> Tensor:
    """Which keys each query may see: [batch, 1, length, keys], one byte each."""
    keys = length + t.prefix_length
    shape, numel = (1, 1, length, keys), length * keys
    inside = None
    if windowed:
        near = t.new(shape, numel, BOOL, "gt")
        inside = t.new(shape, numel, BOOL, "bitwise_and")
        del near
    seen = _before(t, length)
    if inside is not None:
        del inside
        seen = t.new(shape, numel, BOOL, "bitwise_and")
    # joined with the padding mask, which is given even where it hides nothing
    return t.new((batch, *shape[1:]), batch * numel, BOOL, "bitwise_and")  # type: ignore[no-any-return]
