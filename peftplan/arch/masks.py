"""Attention masks as transformers builds them, once a step, outside the graph.

Source: transformers 5.23 masking_utils.py (sdpa_mask, compared element by element over aranges; eager_mask,
the same turned into numbers to add; flash_attention_mask, the batch's own mask; _ignore_causal_mask_sdpa). A
causal mask without padding is left to the kernel's own flag under sdpa; a sequence that reaches a layer's
window needs a mask.
"""

from __future__ import annotations

from peftplan.arch.former_masks import float_mask
from peftplan.specs.formats import BOOL, INT64, DType
from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Tensor


def attention_mask(
    t: Ops, batch: int, length: int, dtype: DType, window: int | None = None, always: bool = False
) -> Tensor | None:
    """The mask of layers that see everything before (`window` None) or so many keys; None where none is made.

    `always`: the family asks for one where the kernel's causal flag would do.
    """
    if t.positions is not None:
        return _packed(t, length, dtype, window is not None, always or (window is not None and length >= window))
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


def _packed(t: Ops, length: int, dtype: DType, windowed: bool, needed: bool) -> Tensor | None:
    """The mask of a row of sequences that see nothing of one another; its positions tell where they begin."""
    first = t.new((1, 1), 1, INT64, "sub")
    joined = t.new((1, length + 1), length + 1, INT64, "cat")
    steps = t.new((1, length), length, INT64, "sub", 16 * length)
    del joined
    anew = t.new((1, length), length, BOOL, "ne", 8 * length)
    numbers: Tensor | None = t.new((1, length), length, INT64, "cumsum", length)
    del anew, first, steps
    if t.num_packed == 1:
        numbers = None
    if t.attention == "flash" or (numbers is None and not needed and t.attention == "sdpa"):
        return None
    shape, numel = (1, 1, length, length), length * length
    seen = None
    if numbers is not None:
        same = _compared(t, length, "eq")
        seen = t.new(shape, numel, BOOL, "bitwise_and")
        del same
    allowed = _inside(t, length) if windowed else _compared(t, length, "le")
    if seen is not None:
        both = t.new(shape, numel, BOOL, "bitwise_and")
        del seen, allowed
        allowed = both
        del both
    del numbers
    if t.attention != "eager":
        return allowed
    return t.new(shape, numel, dtype, "where")  # type: ignore[no-any-return]


def _compared(t: Ops, length: int, op: str) -> Tensor:
    """Every query's number with every key's: [1, 1, length, length], one byte each."""
    return t.new((1, 1, length, length), length * length, BOOL, op, 16 * length)  # type: ignore[no-any-return]


def _inside(t: Ops, length: int) -> Tensor:
    """What lies in a query's window and not behind it."""
    shape, numel = (1, 1, length, length), length * length
    near = _compared(t, length, "gt")
    inside = t.new(shape, numel, BOOL, "bitwise_and")
    del near
    before = _compared(t, length, "le")
    out: Tensor = t.new(shape, numel, BOOL, "bitwise_and")
    del inside, before
    return out


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
