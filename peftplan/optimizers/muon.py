"""Muon, as torch has it: momentum of hidden matrices, made orthogonal by Newton and Schulz; AdamW for the rest.

Source: muon, torch-muon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftplan.optimizers.row import Groups, Optimizer, Weight, moments
from peftplan.optimizers.torch_rows import ADAMW
from peftplan.specs.formats import BF16
from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Tensor

_ITERATIONS = 5


def _takes(weight: Weight, options: Any) -> bool:
    return len(weight.shape) == 2 and weight.kind not in ("embedding", "head")


def _step(t: Ops, groups: Groups, options: Any, renews: bool) -> None:
    for group in groups:
        held: list[Tensor] = []  # the update, until the next tensor has its own
        for row in group:
            size = row.num_bytes
            t.write("lerp_", row.dtype, 2 * size, size)
            held = [t.new(row.shape, row.numel, row.dtype, "update before it is orthogonal", 2 * size)]
            held = [_orthogonal(t, held, row)]
            t.write("mul_", row.dtype, size, size)
            t.write("add_", row.dtype, size + 2 * row.numel, size)
        del held


def _orthogonal(t: Ops, held: list[Tensor], row: Weight) -> Tensor:
    """Five iterations in bf16; what is orthogonalised stays with the caller until the result is there."""
    narrow, wide = sorted(row.shape)
    size, square = 2 * row.numel, 2 * narrow * narrow
    found = held[0]
    if row.dtype is not BF16:
        found = t.new(row.shape, row.numel, BF16, "update in bf16", row.num_bytes)
    norm = t.new((), 1, BF16, "linalg_vector_norm", size)
    norm = t.new((), 1, BF16, "clamp")
    t.write("div_", BF16, size, size)
    del norm
    product, change = 2 * narrow * narrow * wide, 2 * narrow * narrow * narrow
    gram = step = None
    for _ in range(_ITERATIONS):
        gram = t.new((narrow, narrow), narrow * narrow, BF16, "Gram matrix", 2 * size, product)
        step = t.new((narrow, narrow), narrow * narrow, BF16, "addmm", 3 * square, change)
        found = t.new((narrow, wide), row.numel, BF16, "orthogonal update", square + 2 * size, product)
    del gram, step
    return found


def _refuses(weights: Sequence[Weight], options: Any) -> str:
    if any(_takes(weight, options) for weight in weights):
        return ""
    return (
        "it updates hidden matrices, and nothing that trains here is one; take --optimizer adamw, which it leaves "
        "the rest to"
    )


MUON = Optimizer(
    "muon",
    "torch Muon for hidden matrices: one state, orthogonalised in bf16 one by one; AdamW (foreach) for the rest",
    "torch-muon",
    moments("momentum"),
    aliases=("torch-muon",),
    step=_step,
    takes=_takes,
    beside=ADAMW,
    refuses=_refuses,
)
