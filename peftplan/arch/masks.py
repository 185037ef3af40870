"""Attention masks as transformers builds them, once a step, outside the graph.

Source: transformers 5.23 masking_utils.py (sdpa_mask, compared element by element over aranges; eager_mask,
the same turned into numbers to add; _ignore_causal_mask_sdpa). A causal mask without padding is left to the
kernel's own flag under sdpa; a sequence that reaches a layer's window needs a mask.
"""

from __future__ import annotations

from peftplan.specs.formats import BOOL, DType
from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Tensor


def attention_mask(
    t: Ops, batch: int, length: int, dtype: DType, window: int | None = None, always: bool = False
) -> Tensor | None:
    """The mask of layers that see everything before (`window` None) or so many keys; None where none is made.

    `always`: the family asks for one where the kernel's causal flag would do.
    """
    if t.attention == "eager":
        return numbers_mask(t, batch, length, dtype, window is not None)
    if t.attention == "sdpa" and (always or (window is not None and length >= window)):
        return _allowed(t, batch, length, windowed=window is not None)
    return None


def numbers_mask(t: Ops, batch: int, length: int, dtype: DType, windowed: bool = False) -> Tensor:
    """Zeros and very negative numbers to add to scores, as attention written out takes them."""
    allowed = _allowed(t, batch, length, windowed)
    return t.new(allowed.shape, allowed.numel, dtype, "where")  # type: ignore[no-any-return]


def _allowed(t: Ops, batch: int, length: int, windowed: bool) -> Tensor:
    """Which keys each query may see: [batch, 1, length, length], one byte each."""
    shape, numel = (1, 1, length, length), length * length
    inside = None
    if windowed:
        near = t.new(shape, numel, BOOL, "gt")
        inside = t.new(shape, numel, BOOL, "bitwise_and")
        del near
    before = t.new(shape, numel, BOOL, "le")
    seen = t.new(shape, numel, BOOL, "bitwise_and")
    del before
    if inside is not None:
        del inside
        seen = t.new(shape, numel, BOOL, "bitwise_and")
    # joined with the padding mask, which is given even where it hides nothing
    return t.new((batch, 1, length, length), batch * numel, BOOL, "bitwise_and")  # type: ignore[no-any-return]
