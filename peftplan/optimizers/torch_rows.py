"""Optimizers of torch.optim: foreach and fused ones; Adafactor, which holds an estimate of every tensor at once.

Source: torch-adamw, torch-sgd, torch-rmsprop-adagrad, torch-adafactor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peftplan.optimizers.row import Foreach, Groups, Optimizer, States, Weight, moments
from peftplan.specs.formats import DType
from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Tensor

_TWO_MOMENTS = moments("first moment", "second moment")


def _two_moments_and_step(weight: Weight, options: Any) -> States:
    return [("step", 4), *_TWO_MOMENTS(weight, options)]


_SECOND_MOMENT = (
    Foreach("_foreach_mul_", 1, 1, 1),  # second moment
    Foreach("_foreach_addcmul_", 3, 2, 1),  # second moment, gradient squared
)
_ADAMW_FOREACH = (
    Foreach("_foreach_mul_", 1, 1, 1, decay=True),  # the weight
    Foreach("_foreach_lerp_", 2, 2, 1),  # first moment, gradient
    *_SECOND_MOMENT,
    Foreach("_foreach_sqrt", 2, 1, 1),  # second moment, into a copy, which the next two change
    Foreach("_foreach_div_", 1, 1, 1, scalars=True),
    Foreach("_foreach_add_", 1, 1, 1),
    Foreach("_foreach_addcdiv_", 3, 3, 1, scalars=True),  # the weight, first moment, the copy
)
_SGD = (Foreach("_foreach_add_", 2, 2, 1),)
_RMSPROP = (
    *_SECOND_MOMENT,
    Foreach("_foreach_sqrt", 2, 1, 1),
    Foreach("_foreach_add_", 1, 1, 1),
    Foreach("_foreach_addcdiv_", 3, 3, 1),
)
_ADAGRAD = (
    Foreach("_foreach_addcmul_", 3, 2, 1),
    Foreach("_foreach_sqrt", 2, 1, 1),
    Foreach("_foreach_add_", 1, 1, 1),
    Foreach("_foreach_mul", 2, 1, 1, scalars=True),  # the gradient, into a copy
    Foreach("_foreach_addcdiv_", 3, 3, 1),
)


def _factors(weight: Weight, options: Any) -> States:
    if len(weight.shape) < 2:
        return [("second moment", weight.num_bytes)]
    rows, columns = weight.shape[-2:]
    each = weight.numel // (rows * columns) * weight.dtype.itemsize
    return [("row factor", each * rows), ("column factor", each * columns)]


def _adafactor_step(t: Ops, groups: Groups, options: Any, renews: bool) -> None:
    """One set of estimates, as large as the weights of a type and a kind, until the next kind has its own."""
    for group in groups:
        update: list[Tensor] = []
        for rows in _by_type_and_kind(group):
            for weight in rows:
                t.new((), 1, weight.dtype, "norm of a weight", weight.num_bytes)
            if len(rows[0].shape) > 1:
                update = _factored(t, rows)
            else:
                squared = [_like(t, weight, "_foreach_mul") for weight in rows]
                for weight in rows:
                    t.write("_foreach_lerp_", weight.dtype, 2 * weight.num_bytes, weight.num_bytes)
                del squared
                update = [_like(t, weight, "clone") for weight in rows]
            for weight in rows:
                size = weight.num_bytes
                t.write("_foreach_clamp_min_", weight.dtype, size, size)
                t.write("_foreach_rsqrt_", weight.dtype, size, size)
                t.write("_foreach_mul_", weight.dtype, 2 * size, size)
                t.new((), 1, weight.dtype, "norm of an update", size)
                t.write("_foreach_mul_", weight.dtype, size, size)
                t.write("_foreach_add_", weight.dtype, 2 * size, size)
        del update


def _factored(t: Ops, rows: list[Weight]) -> list[Tensor]:
    for along in (-1, -2):
        means = []
        for weight in rows:
            shape = list(weight.shape)
            shape[along] = 1
            numel = weight.numel // weight.shape[along]
            means.append(t.new(tuple(shape), numel, weight.dtype, "linalg_vector_norm", weight.num_bytes))
            size = numel * weight.dtype.itemsize
            for op, read in (("_foreach_mul_", size), ("_foreach_div_", size), ("_foreach_lerp_", 2 * size)):
                t.write(op, weight.dtype, read, size)
        del means
    estimates, means = [], []
    for weight in rows:
        factors = weight.num_bytes // weight.shape[-1] + weight.num_bytes // weight.shape[-2]
        estimates.append(t.new(weight.shape, weight.numel, weight.dtype, "mm", factors, 2 * weight.numel))
    for weight in rows:
        *lead, height, width = weight.shape
        numel = weight.numel // (height * width)
        means.append(t.new((*lead, 1, 1), numel, weight.dtype, "mean", numel * height * weight.dtype.itemsize))
    for weight in rows:
        t.write("_foreach_div_", weight.dtype, weight.num_bytes, weight.num_bytes)
    del means
    return estimates


def _like(t: Ops, weight: Weight, op: str) -> Tensor:
    made: Tensor = t.new(weight.shape, weight.numel, weight.dtype, op)
    return made


def _by_type_and_kind(group: Iterable[Weight]) -> list[list[Weight]]:
    """Matrices apart from vectors, by type: of the types, the one met last comes first."""
    types: dict[DType, list[Weight]] = {}
    for weight in group:
        types.setdefault(weight.dtype, []).append(weight)
    kinds: dict[tuple[DType, bool], list[Weight]] = {}
    for dtype, rows in reversed(types.items()):
        for weight in rows:
            kinds.setdefault((dtype, len(weight.shape) > 1), []).append(weight)
    return list(kinds.values())


ADAMW = Optimizer(
    "adamw",
    "torch AdamW, foreach: a step holds a copy of every second moment",
    "torch-adamw",
    _TWO_MOMENTS,
    aliases=("adamw-torch", "adamw-hf", "adam"),
    copies=("copy of the second moment",),
    foreach=_ADAMW_FOREACH,
)
ADAMW_FUSED = Optimizer(
    "adamw-fused",
    "torch AdamW, fused: no temporaries, step counters on the device",
    "torch-adamw",
    _two_moments_and_step,
    aliases=("adamw-torch-fused",),
    foreach=(
        Foreach("_fused_adamw_", 4, 4, 3),  # weight, gradient, both moments
    ),
)
TORCH = (
    ADAMW,
    ADAMW_FUSED,
    Optimizer("sgd", "torch SGD without momentum: no state", "torch-sgd", foreach=_SGD),
    Optimizer(
        "sgd-momentum",
        "torch SGD with momentum: one state",
        "torch-sgd",
        moments("momentum"),
        foreach=(Foreach("_foreach_mul_", 1, 1, 1), Foreach("_foreach_add_", 2, 2, 1), *_SGD),
    ),
    Optimizer(
        "rmsprop",
        "torch RMSprop, foreach: one state, and a copy of every one of them in a step",
        "torch-rmsprop-adagrad",
        moments("second moment"),
        copies=("copy of the second moment",),
        foreach=_RMSPROP,
    ),
    Optimizer(
        "adagrad",
        "torch Adagrad, foreach: one state, and copies of it and of the gradients in a step",
        "torch-rmsprop-adagrad",
        moments("sum of squares"),
        copies=("copy of the sum of squares", "copy of the gradient"),
        foreach=_ADAGRAD,
    ),
    Optimizer(
        "adafactor-torch",
        "torch Adafactor, foreach: row and column factors; a step holds an update of every weight",
        "torch-adafactor",
        _factors,
        step=_adafactor_step,
        every=True,
    ),
)
