"""GaLore: AdamW or Adafactor on projected gradients of chosen linears, tensor by tensor.

Source: galore, low-rank-targets.
"""

from __future__ import annotations

from dataclasses import replace

from peftplan.optimizers.bitsandbytes import ADAMW_8BIT, in_eight_bits
from peftplan.optimizers.factored import approximate, clip_update, factor_bytes, fp32, wide
from peftplan.optimizers.projection import (
    LowRankOptions,
    Projector,
    adam_states,
    group_of,
    narrowed,
    no_target,
    projection_bytes,
    svd_rank,
    targeted,
    write_moments,
)
from peftplan.optimizers.row import Groups, Optimizer, States, Weight
from peftplan.specs.formats import FP32
from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Tensor

SVD_NOTE = (
    "a step that renews projections also holds cuSOLVER's own workspace, and takes the time of one decomposition "
    "for each target: neither is known, and neither is counted"
)


def _galore_adam(t: Ops, groups: Groups, options: LowRankOptions, renews: bool) -> None:
    """A variable stays until the next tensor takes its place: the last update among them, as wide as its weight."""
    grad: Tensor | None = None
    root: list[Tensor] = []
    update: list[Tensor] = []
    for group in groups:
        for row in group:
            grad = None
            projector = Projector(t, row, row.dtype, options, False) if targeted(row, options) else None
            shape, numel = row.shape, row.numel
            if projector is not None:
                grad = projector.down(renews)
                shape, numel = projector.shape, projector.numel
            size = numel * row.dtype.itemsize
            write_moments(t, row.dtype, size)
            root = [t.new(shape, numel, row.dtype, "sqrt", size)]
            t.write("add_", row.dtype, size, size)
            update = [t.new(shape, numel, row.dtype, "div", 2 * size)]
            if projector is not None:
                update = [projector.up(update)]
            t.write("add_", row.dtype, 2 * row.num_bytes, row.num_bytes)
    del grad, root, update


def _adafactor_states(weight: Weight, options: LowRankOptions) -> States:
    if not targeted(weight, options):
        if len(weight.shape) < 2:
            return [("second moment", 4 * weight.numel), ("RMS", 4)]
        rows, columns = factor_bytes(weight.shape)
        return [("row factor", rows), ("column factor", columns), ("RMS", 4)]
    rows, columns = factor_bytes(narrowed(weight.shape, svd_rank(weight, options)))
    kept = projection_bytes(weight, FP32, options)  # gradients are cast before they are projected
    return [("projections", kept), ("row factor", rows), ("column factor", columns), ("RMS", 4)]


def _galore_adafactor(t: Ops, groups: Groups, options: LowRankOptions, renews: bool) -> None:
    grad: list[Tensor] = []
    weight: list[Tensor] = []
    update: list[Tensor] = []
    for group in groups:
        for row in group:
            size = 4 * row.numel
            grad = []
            if row.narrow:
                grad = [wide(t, row, "gradient in fp32")]
            shape = row.shape
            projector = Projector(t, row, FP32, options, False) if targeted(row, options) else None
            if projector is not None:
                grad = [projector.down(renews)]
                shape = projector.shape
            weight = []
            if row.narrow:
                weight = [wide(t, row, "weight in fp32")]
            t.new((), 1, FP32, "linalg_vector_norm", size)
            t.new((), 1, FP32, "div")
            squared = fp32(t, shape, "squared gradient")
            update = [fp32(t, shape, "squared gradient and epsilon")]
            del squared
            update = [approximate(t, shape, update)]
            held = 4 * update[0].numel
            t.write("mul_", FP32, 2 * held, held)
            clip_update(t, held)
            t.write("mul_", FP32, held, held)
            if projector is not None:
                update = [projector.up(update)]
            fp32(t, row.shape, "update, negated", size)
            t.write("add_", FP32, 2 * size, size)
            if row.narrow:
                t.write("copy_", row.dtype, size, row.num_bytes)
    del grad, weight, update


def _eight_bit_states(weight: Weight, options: LowRankOptions) -> States:
    """bitsandbytes' states of what is left of a gradient, and a norm each.

    galore_torch hands `percentile_clipping` where releases of bitsandbytes since have `max_unorm`.
    """
    weight = weight._replace(wide=False)  # Trainer does not take this for an optimizer of bitsandbytes
    if not targeted(weight, options):
        return [*ADAMW_8BIT.states(weight, options), ("norm of the update", 4)]
    narrow = weight._replace(shape=narrowed(weight.shape, svd_rank(weight, options)))
    kept = projection_bytes(weight, weight.dtype, options)
    return [("projections", kept), *ADAMW_8BIT.states(narrow, options), ("norm of the update", 4)]


def _eight_bit_tables(weight: Weight, options: LowRankOptions) -> tuple[int, ...]:
    if targeted(weight, options):
        weight = weight._replace(shape=narrowed(weight.shape, svd_rank(weight, options)))
    return ADAMW_8BIT.tables(weight._replace(wide=False), options)


def _galore_eight_bit(t: Ops, groups: Groups, options: LowRankOptions, renews: bool) -> None:
    """The projected gradient takes the place of the gradient, and for a while a copy of it that of the weight."""
    kept: list[Tensor] = []
    for group in groups:
        for row in group:
            size = row.num_bytes
            if not targeted(row, options):
                _update_in_eight_bits(t, row)
                continue
            projector = Projector(t, row, row.dtype, options, False)
            kept.append(projector.down(renews))
            few = kept[-1].numel * row.dtype.itemsize
            clone = t.new(row.shape, row.numel, row.dtype, "weight, cloned", size)
            narrow = [t.new(projector.shape, projector.numel, row.dtype, "projected gradient, cloned", few)]
            t.let_go(size)  # the weight, whose place its clone takes for good
            t.write("zero_", row.dtype, 0, few)
            t.let_go(size)  # the gradient
            _update_in_eight_bits(t, row._replace(shape=projector.shape))
            wide_update = [projector.up(narrow)]
            t.write("add_", row.dtype, 2 * size, size)
            t.write("add_", row.dtype, size, size)  # weight decay
            del narrow, wide_update, clone
            t.let_go(-size)
    kept.clear()


GALORE = Optimizer(
    "galore-adamw",
    "GaLore: AdamW, looped, on projected gradients of the targeted linears, and on whole ones of the rest",
    "galore",
    adam_states(False),
    aliases=("galore",),
    options=LowRankOptions,
    step=_galore_adam,
    group=group_of,
    refuses=no_target,
    takes_masters=False,
    notes=(SVD_NOTE,),
)


def _update_in_eight_bits(t: Ops, row: Weight) -> None:
    """bitsandbytes' kernel; where states are in fp32, the norm of what is updated comes first."""
    row = row._replace(wide=False)
    size, states = row.num_bytes, sum(num_bytes for _, num_bytes in ADAMW_8BIT.states(row, None))
    if not in_eight_bits(row):
        copy = wide(t, row, "weight in fp32") if row.narrow else None
        t.new((), 1, FP32, "linalg_vector_norm", 4 * row.numel)
        del copy
    t.write("optimizer_update", row.dtype, 2 * size + states, size + states)


EIGHT_BIT = replace(
    GALORE,
    name="galore-adamw-8bit",
    summary="GaLore with bitsandbytes AdamW8bit: projections, and two bytes for each value of what they leave",
    states=_eight_bit_states,
    tables=_eight_bit_tables,
    aliases=("galore-8bit",),
    step=_galore_eight_bit,
    every=True,
)
GALORE_ROWS = (
    GALORE,
    replace(
        GALORE,
        name="galore-adamw-layerwise",
        summary="GaLore with AdamW, each tensor updated as its gradient comes",
        aliases=(),
        in_backward=True,
    ),
    replace(
        GALORE,
        name="galore-adafactor",
        summary="GaLore: Adafactor on projected gradients of the targeted linears, in fp32",
        states=_adafactor_states,
        aliases=(),
        step=_galore_adafactor,
    ),
    replace(
        GALORE,
        name="galore-adafactor-layerwise",
        summary="GaLore with Adafactor, each tensor updated as its gradient comes",
        states=_adafactor_states,
        aliases=(),
        step=_galore_adafactor,
        in_backward=True,
    ),
    EIGHT_BIT,
    replace(
        EIGHT_BIT,
        name="galore-adamw-8bit-layerwise",
        summary="GaLore with bitsandbytes AdamW8bit, each tensor updated as its gradient comes",
        aliases=(),
        in_backward=True,
    ),
)
