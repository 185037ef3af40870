"""LOMO and AdaLomo: a tensor is updated in fp32 when the gradient of the next one is there; gradients never stay.

Source: lomo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftplan.optimizers.factored import approximate, clip_update, fp32, wide
from peftplan.optimizers.row import Groups, Optimizer, States, Weight
from peftplan.specs.formats import BOOL, FP32
from peftplan.specs.modules import Ops


def _lomo(t: Ops, groups: Groups, options: Any, renews: bool) -> None:
    """The gradient has been cast, and let go, before."""
    for group in groups:
        for row in group:
            size = 4 * row.numel
            _cast(t, row)
            weight = wide(t, row, "weight in fp32") if row.narrow else None
            t.write("add_", FP32, 2 * size, size)
            t.write("copy_", row.dtype, size, row.num_bytes)
            del weight


def _adalomo(t: Ops, groups: Groups, options: Any, renews: bool) -> None:
    for group in groups:
        for row in group:
            size = 4 * row.numel
            _cast(t, row)
            t.write("div_", FP32, size, size)  # by the loss's scale
            squared = fp32(t, row.shape, "squared gradient", size)
            update = [fp32(t, row.shape, "squared gradient and epsilon", size)]
            del squared
            update = [approximate(t, row.shape, update)]
            t.write("mul_", FP32, 2 * size, size)
            clip_update(t, size)
            weight = wide(t, row, "weight in fp32") if row.narrow else None
            norm = t.new((), 1, FP32, "linalg_vector_norm", size)
            root_mean_square = t.new((), 1, FP32, "div")
            del norm
            t.new((), 1, BOOL, "gt")
            t.write("add_", FP32, 2 * size, size)
            t.write("copy_", row.dtype, size, row.num_bytes)
            del update, weight, root_mean_square


def _cast(t: Ops, row: Weight) -> None:
    if row.narrow:
        t.write("_to_copy", FP32, row.num_bytes, 4 * row.numel)


def _factors(weight: Weight, options: Any) -> States:
    if len(weight.shape) == 1:
        return [("second moment", 4 * weight.numel)]
    return [("row factor", 4 * weight.shape[0]), ("column factor", 4 * weight.shape[1])]


def _refuses(weights: Sequence[Weight], options: Any) -> str:
    for weight in weights:
        if len(weight.shape) > 2:
            return (
                f"it keeps factors of vectors and matrices, and {weight.name} has the shape {list(weight.shape)}; "
                "take --optimizer lomo"
            )
    return ""


LOMO = (
    Optimizer(
        "lomo",
        "LOMO: SGD without state, each tensor updated in fp32 when the next gradient comes",
        "lomo",
        step=_lomo,
        group=lambda weight, options: 0,
        in_backward=True,
        late=True,
    ),
    Optimizer(
        "adalomo",
        "AdaLomo: row and column factors in fp32, each tensor updated when the next gradient comes",
        "lomo",
        _factors,
        step=_adalomo,
        group=lambda weight, options: 0,
        in_backward=True,
        late=True,
        scales_loss=True,
        refuses=_refuses,
        whole_model=True,
    ),
)
