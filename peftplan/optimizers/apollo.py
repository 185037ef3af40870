"""APOLLO: AdamW on random projections, whose scales the whole gradients of chosen linears take.

Source: apollo, low-rank-targets.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from peftplan.optimizers.galore import GALORE
from peftplan.optimizers.projection import (
    LowRankOptions,
    Projector,
    RankOneOptions,
    adam_states,
    targeted,
    write_moments,
)
from peftplan.optimizers.row import Groups, Weight
from peftplan.specs.formats import DType
from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Tensor


def _by_channel(options: Any) -> bool:
    return not isinstance(options, RankOneOptions)


def _apollo_adam(t: Ops, groups: Groups, options: LowRankOptions, renews: bool) -> None:
    """The projected step gives a scale, of each channel or of the tensor, that the whole gradient is multiplied by.

    Assumes: the limiter of growing norms is a tensor, as it is where norms grow.
    """
    grad: Tensor | None = None
    root: list[Tensor] = []
    update: list[Tensor] = []
    scale: list[Tensor] = []
    scaled: list[Tensor] = []
    norm: list[Tensor] = []
    limit: list[Tensor] = []
    for group in groups:
        for row in group:
            grad, dtype = None, row.dtype
            projector = Projector(t, row, dtype, options, True) if targeted(row, options) else None
            shape, numel = row.shape, row.numel
            if projector is not None:
                grad = projector.down(renews)
                shape, numel = projector.shape, projector.numel
            size = numel * dtype.itemsize
            write_moments(t, dtype, size)
            root = [t.new(shape, numel, dtype, "sqrt", size)]
            t.write("add_", dtype, size, size)
            update = [t.new(shape, numel, dtype, "div", 2 * size)]
            if projector is not None:
                scale = [_scale(t, row, size, _by_channel(options))]
                scaled = [t.new(row.shape, row.numel, dtype, "gradient, scaled", row.num_bytes)]
                norm = [t.new((), 1, dtype, "linalg_vector_norm", row.num_bytes)]
                limit = [_limit(t, dtype)]
                scaled = [t.new(row.shape, row.numel, dtype, "gradient, limited", row.num_bytes)]
                t.new((), 1, dtype, "div")  # takes the place of the norm that is kept
                update = list(scaled)
                t.write("mul_", dtype, row.num_bytes, row.num_bytes)
            t.write("add_", dtype, 2 * row.num_bytes, row.num_bytes)
    del grad, root, update, scale, scaled, norm, limit


def _scale(t: Ops, row: Weight, size: int, by_channel: bool) -> Tensor:
    rows, columns = row.shape
    channels = max(rows, columns) if by_channel else 1
    shape = (channels,) if by_channel else ()
    over = t.new(shape, channels, row.dtype, "linalg_vector_norm", size)
    norm = t.new(shape, channels, row.dtype, "linalg_vector_norm", size)
    under = t.new(shape, channels, row.dtype, "add")
    del norm
    return t.new(shape, channels, row.dtype, "div")  # type: ignore[no-any-return]


def _limit(t: Ops, dtype: DType) -> Tensor:
    under = t.new((), 1, dtype, "add")
    ratio = t.new((), 1, dtype, "div")
    del under
    return t.new((), 1, dtype, "div")  # type: ignore[no-any-return]


APOLLO = replace(
    GALORE,
    name="apollo-adamw",
    summary="APOLLO: AdamW, looped, on random projections, whose scales of channels the whole gradients take",
    source="apollo",
    states=adam_states(True),
    aliases=("apollo",),
    step=_apollo_adam,
    notes=(),
)
APOLLO_ROWS = (
    APOLLO,
    replace(
        APOLLO,
        name="apollo-adamw-layerwise",
        summary="APOLLO, each tensor updated as its gradient comes",
        aliases=("apollo-layerwise",),
        in_backward=True,
    ),
    replace(
        APOLLO,
        name="apollo-mini",
        summary="APOLLO with projections of rank one and one scale for each tensor",
        aliases=(),
        options=RankOneOptions,
    ),
)
