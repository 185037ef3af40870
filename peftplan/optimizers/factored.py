"""transformers' Adafactor: row and column factors in fp32, and a loop that upcasts one tensor after the other.

Source: adafactor, transformers-adafactor.
"""

from __future__ import annotations

from typing import Any

from peftplan.optimizers.row import Groups, Optimizer, Shape, States, Weight
from peftplan.specs.formats import FP32
from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Tensor


def factor_bytes(shape: Shape) -> tuple[int, int]:
    """Bytes of the row and the column factor of a matrix, or of a stack of them."""
    *lead, rows, columns = shape
    outer = 4
    for size in lead:
        outer *= size
    return outer * rows, outer * columns


def _factored(weight: Weight, options: Any) -> States:
    if len(weight.shape) < 2:
        return [("second moment", 4 * weight.numel), ("RMS", 4)]
    rows, columns = factor_bytes(weight.shape)
    return [("row factor", rows), ("column factor", columns), ("RMS", 4)]


def _step(t: Ops, groups: Groups, options: Any, renews: bool) -> None:
    """Without first moment, decay or relative steps; a variable stays until the next tensor takes its place."""
    grad = weight = update = None
    for group in groups:
        for row in group:
            size = 4 * row.numel
            grad = None
            grad = wide(t, row, "_to_copy") if row.narrow else None
            weight = None
            weight = wide(t, row, "_to_copy") if row.narrow else None
            t.new((), 1, FP32, "linalg_vector_norm", size)
            t.new((), 1, FP32, "div")
            squared = fp32(t, row.shape, "pow", size)
            update = fp32(t, row.shape, "add", size)
            del squared
            update = approximate(t, row.shape, [update])
            t.write("mul_", FP32, 2 * size, size)  # by the gradient
            clip_update(t, size)
            t.write("mul_", FP32, size, size)  # by the learning rate
            fp32(t, row.shape, "neg", size)
            t.write("add_", FP32, 2 * size, size)
            if row.narrow:
                t.write("copy_", row.dtype, size, row.num_bytes)
    del grad, weight, update


def approximate(t: Ops, shape: Shape, held: list[Tensor]) -> Tensor:
    """Squared gradients into the factors (or the second moment), and the inverse root that these stand for.

    `held`, the squares, end when the result is there.
    """
    numel = held[0].numel
    size = 4 * numel
    if len(shape) < 2:
        t.write("mul_", FP32, size, size)
        t.write("add_", FP32, 2 * size, size)
        return fp32(t, shape, "rsqrt", size)
    rows, columns = factor_bytes(shape)
    for factor, dims in ((rows, shape[:-1]), (columns, (*shape[:-2], shape[-1]))):
        t.write("mul_", FP32, factor, factor)
        t.new(dims, factor // 4, FP32, "mean", size)
        t.write("add_", FP32, 2 * factor, factor)
    mean = t.new((*shape[:-2], 1), rows // (4 * shape[-2]), FP32, "mean", rows)
    row = t.new((*shape[:-1], 1), rows // 4, FP32, "div", rows)
    del mean
    t.write("rsqrt_", FP32, rows, rows)
    column = t.new((*shape[:-2], 1, shape[-1]), columns // 4, FP32, "rsqrt", columns)
    update = fp32(t, shape, "mul", rows + columns)
    del row, column
    return update


def clip_update(t: Ops, size: int) -> None:
    """An update divided by its root mean square, where that is above a threshold."""
    t.new((), 1, FP32, "linalg_vector_norm", size)
    for _ in range(2):
        t.new((), 1, FP32, "div")
    t.write("clamp_", FP32, 4, 4)
    t.write("div_", FP32, size, size)


def wide(t: Ops, row: Weight, op: str) -> Tensor:
    """A copy of a tensor in fp32."""
    made: Tensor = t.new(row.shape, row.numel, FP32, op, row.num_bytes)
    return made


def fp32(t: Ops, shape: Shape, op: str, read: int | None = None) -> Tensor:
    """A new fp32 tensor."""
    numel = 1
    for size in shape:
        numel *= size
    made: Tensor = t.new(shape, numel, FP32, op, read)
    return made


ADAFACTOR = Optimizer(
    "adafactor",
    "transformers Adafactor: row and column factors in fp32, no first moment",
    "transformers-adafactor",
    _factored,
    step=_step,
)
