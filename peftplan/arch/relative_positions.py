"""Distances of every query from every key, put into buckets: computed once, outside the graph.

Source: transformers 5.23 modeling_deberta_v2.py (build_relative_position, make_log_bucket_position),
modeling_t5.py (compute_bias, _relative_position_bucket).
"""

from __future__ import annotations

from peftplan.specs.formats import BOOL, FP32, INT64
from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Tensor


def distances_between(t: Ops, length: int, bucketed: bool) -> Tensor:
    """DeBERTa's: [1, 1, length, length] of 64-bit integers."""
    shape, numel = (1, 1, length, length), length * length
    queries = t.new((length,), length, INT64, "arange")
    keys = t.new((length,), length, INT64, "arange")
    distance = t.new(shape, numel, INT64, "sub")
    if bucketed:
        real = _logarithmic(t, distance)
        distance = t.new(shape, numel, INT64, "_to_copy")
        del real
    del queries, keys
    return distance  # type: ignore[no-any-return]


def _logarithmic(t: Ops, distance: Tensor) -> Tensor:
    """Near distances as they are, far ones by their logarithm."""
    shape, numel = distance.shape, distance.numel
    sign = t.like(distance, "sign")
    below = t.new(shape, numel, BOOL, "lt")
    above = t.new(shape, numel, BOOL, "gt")
    near = t.new(shape, numel, BOOL, "bitwise_and")
    del below, above
    middle = t.new((), 1, INT64, "_to_copy")
    size = t.like(distance, "abs")
    absolute = t.like(distance, "where")
    del near, middle, size
    far = t.new(shape, numel, FP32, "div")
    for op in ("log", "div", "mul", "ceil", "add"):
        far = t.like(far, op)
    small = t.new(shape, numel, BOOL, "le")
    exact = t.new(shape, numel, FP32, "_to_copy")
    signed = t.like(far, "mul")
    out = t.like(far, "where")
    del small, exact, signed, sign, absolute, far
    return out  # type: ignore[no-any-return]


def position_buckets(t: Ops, length: int, causal: bool) -> Tensor:
    """T5's: [length, length] of 64-bit integers; a causal stack counts backwards only."""
    shape, numel = (length, length), length * length
    steps = t.new((length,), length, INT64, "arange")
    queries = t.new((length,), length, INT64, "add")
    del steps
    keys = t.new((length,), length, INT64, "arange")
    distance = t.new(shape, numel, INT64, "sub")
    buckets = _bucket(t, distance, causal)
    del queries, keys, distance
    return buckets


def _bucket(t: Ops, distance: Tensor, causal: bool) -> Tensor:
    shape, numel = distance.shape, distance.numel
    base = None
    if causal:
        zeros = t.like(distance, "zeros_like")
        least = t.like(distance, "minimum")
        del zeros
        distance = t.like(distance, "neg")
        del least
    else:
        after = t.new(shape, numel, BOOL, "gt")
        wide = t.like(distance, "_to_copy")
        del after
        offset = t.like(distance, "mul")
        del wide
        base = t.like(distance, "add")
        del offset
        distance = t.like(distance, "abs")
    small = t.new(shape, numel, BOOL, "lt")
    far = t.new(shape, numel, FP32, "_to_copy")
    for op in ("div", "log", "div", "mul"):
        far = t.like(far, op)
    whole = t.like(distance, "_to_copy")
    del far
    large = t.like(distance, "add")
    del whole
    most = t.like(distance, "full_like")
    held = t.like(distance, "minimum")
    del most, large
    chosen = t.like(distance, "where")
    if base is None:
        base = t.like(distance, "add")
    del chosen, small, held
    return base  # type: ignore[no-any-return]
