"""Projections of gradients, as GaLore and APOLLO make them of those of chosen linears.

A gradient [m, n] becomes [m, r] where m is at least n, else [r, n]; states have that shape. GaLore's projection is
part of the gradient's singular vectors, of which all are kept where they need no cast; APOLLO's is drawn at random.
Projections are renewed every few hundred steps: memory is that of such a step, time that of the others.

Assumes: what cuSOLVER takes for itself in a decomposition is not counted, for want of its formula.

Source: galore, apollo, low-rank-targets, torch-svd.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field

from peftplan.optimizers.factored import wide
from peftplan.optimizers.row import OptimizerOptions, Shape, States, Weight
from peftplan.specs.formats import FP32, DType
from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Tensor


class LowRankOptions(OptimizerOptions):
    """The defaults are transformers'."""

    rank: Annotated[int, Field(ge=1, le=100_000, description="width of projected gradients")] = 128
    update_proj_gap: Annotated[int, Field(ge=1, le=10**9, description="steps between new projections")] = 200
    target_modules: Annotated[
        str, Field(description="linears that are projected: parts of names with commas, regexes, or all-linear")
    ] = "attn,mlp"


class RankOneOptions(LowRankOptions):
    """One scale for a whole tensor needs no more than rank one."""

    rank: Annotated[int, Field(ge=1, le=100_000, description="width of projected gradients")] = 1


def targeted(weight: Weight, options: LowRankOptions) -> bool:
    """Whether transformers projects this tensor's gradient: the weight of an nn.Linear that a target names."""
    if weight.kind not in ("linear", "head") or not weight.name.endswith(".weight"):
        return False
    if options.target_modules.replace("_", "-") == "all-linear":
        return True
    name = weight.name.removesuffix(".weight")
    words = options.target_modules.split(",")
    return any(word in name for word in words) or any(re.fullmatch(word, name) for word in words)


def group_of(weight: Weight, options: LowRankOptions) -> int:
    """Which of transformers' groups a tensor is in: the rest comes before what is projected."""
    return int(targeted(weight, options))


def no_target(weights: Sequence[Weight], options: LowRankOptions) -> str:
    """Why nothing that trains is projected, or nothing where something is."""
    try:
        if any(targeted(weight, options) for weight in weights):
            return ""
    except re.error as error:
        return f"target_modules={options.target_modules} is no regular expression ({error}); give parts of names"
    return (
        f"it projects gradients of nn.Linear weights, and target_modules={options.target_modules} names "
        "none that trains here; give others with --optimizer-option target_modules=..., or take --optimizer adamw"
    )


# ---- shapes


def narrowed(shape: Shape, rank: int) -> Shape:
    """The shape of a projected gradient."""
    rows, columns = shape
    return (rows, rank) if rows >= columns else (rank, columns)


def svd_rank(weight: Weight, options: LowRankOptions) -> int:
    """The rank of a projection that a decomposition gives: no more than there are singular vectors."""
    return min(options.rank, *weight.shape)


def projection_bytes(weight: Weight, dtype: DType, options: LowRankOptions) -> int:
    """Singular vectors: those of the rank, or all of them where they are a part of what was not cast."""
    short = min(weight.shape)
    if dtype is FP32:
        return 4 * short * short
    return svd_rank(weight, options) * short * dtype.itemsize


# ---- projecting


class Projector:
    """What a projection does on the tape, for gradients of a type; `draws`: at random."""

    def __init__(self, t: Ops, weight: Weight, dtype: DType, options: LowRankOptions, draws: bool) -> None:
        self.t, self.weight, self.dtype, self.options, self.draws = t, weight, dtype, options, draws
        self.rank = options.rank if draws else svd_rank(weight, options)
        self.shape = narrowed(weight.shape, self.rank)
        self.numel = self.shape[0] * self.shape[1]
        self.size = weight.numel * dtype.itemsize
        short = min(weight.shape)
        self.vectors = short * self.rank * dtype.itemsize

    def down(self, renews: bool) -> Tensor:
        """The gradient projected; a new projection takes the place of the old one first."""
        if renews:
            self._draw() if self.draws else self._decompose()
        return self._product(self.shape, self.numel, self.size + self.vectors)

    def up(self, held: list[Tensor]) -> Tensor:
        """What `held` has, as wide as the weight again and scaled."""
        numel = self.weight.numel
        read = self.numel * self.dtype.itemsize + self.vectors
        made = self._product(self.weight.shape, numel, read)
        return self.t.new(self.weight.shape, numel, self.dtype, "update, scaled")  # type: ignore[no-any-return]

    def _product(self, shape: Shape, numel: int, read: int) -> Tensor:
        flop = 2 * self.weight.numel * self.rank
        return self.t.new(shape, numel, self.dtype, "projected", read, flop)  # type: ignore[no-any-return]

    def _decompose(self) -> None:
        t, rank = self.t, self.rank
        rows, columns = self.weight.shape
        short, narrow = min(rows, columns), self.dtype is not FP32
        matrix = wide(t, self.weight, "gradient in fp32") if narrow else None
        left = t.new((rows, short), rows * short, FP32, "left singular vectors", 4 * rows * columns)
        values = t.further((short,), short, FP32, "singular values")
        right = t.further((short, columns), short * columns, FP32, "right singular vectors")
        t.workspace("svd", 4 * rows * columns)  # a copy, which is overwritten
        diagonal = t.new((rank, rank), rank * rank, FP32, "diag_embed", 4 * rank)
        side = rows if rows >= columns else columns
        other = t.new((side, rank), side * rank, FP32, "mm", 4 * rank * (rank + side), 2 * side * rank * rank)
        del diagonal
        if narrow:
            t.new((short, rank), short * rank, self.dtype, "projection", 4 * short * rank)
        del matrix, left, values, right, other

    def _draw(self) -> None:
        t, size = self.t, min(self.weight.shape) * self.rank
        shape = (self.rank, min(self.weight.shape))
        matrix = wide(t, self.weight, "gradient in fp32") if self.dtype is not FP32 else None
        drawn = t.new(shape, size, FP32, "randn", 0)
        drawn = t.new(shape, size, FP32, "div")
        if self.dtype is not FP32:
            drawn = t.new(shape, size, self.dtype, "projection", 4 * size)
        del matrix, drawn


# ---- what Adam keeps and writes of a projected gradient


def adam_states(draws: bool) -> Callable[[Weight, LowRankOptions], States]:
    """A projection, and both moments of what it leaves of a gradient; whole moments of the rest."""

    def states(weight: Weight, options: LowRankOptions) -> States:
        if not targeted(weight, options):
            return [("first moment", weight.num_bytes), ("second moment", weight.num_bytes)]
        short, size = min(weight.shape), weight.dtype.itemsize
        rank = options.rank if draws else svd_rank(weight, options)
        moment = weight.numel // short * rank * size
        kept = short * rank * size if draws else projection_bytes(weight, weight.dtype, options)
        norm = [("norm of the update", size)] if draws else []
        return [("projections", kept), ("first moment", moment), ("second moment", moment), *norm]

    return states


def write_moments(t: Ops, dtype: DType, size: int) -> None:
    """Both moments in place."""
    for read in (size, 2 * size, size, 2 * size):
        t.write("mul_" if read == size else "add_", dtype, read, size)
