"""Schedule-Free: the weights are a mean of two sequences, one of which is a state; foreach.

Source: schedule-free.
"""

from __future__ import annotations

from peftplan.optimizers.row import Foreach, Optimizer, moments

_BOTH = (
    Foreach("_foreach_lerp_", 2, 2, 1),  # the weight towards z
    Foreach("_foreach_add_", 2, 2, 1),  # the weight, by the gradient
    Foreach("_foreach_sub_", 2, 2, 1),  # z, by the gradient
)
_ADAPTIVE = (
    Foreach("_foreach_mul_", 1, 1, 1),
    Foreach("_foreach_addcmul_", 3, 2, 1),
    Foreach("_foreach_div", 2, 1, 1),  # the second moment, into a copy
    Foreach("_foreach_sqrt_", 1, 1, 1),
    Foreach("_foreach_add_", 1, 1, 1),
    Foreach("_foreach_div_", 2, 2, 1),  # the gradient
)


def _adaptive(name: str, summary: str) -> Optimizer:
    return Optimizer(
        name,
        summary,
        "schedule-free",
        moments("z", "second moment"),
        copies=("copy of the second moment",),
        one_list=True,
        foreach=(*_ADAPTIVE, *_BOTH),
    )


SCHEDULE_FREE = (
    _adaptive(
        "schedule-free-adamw", "Schedule-Free AdamW, foreach: a second copy of the weights and second moments"
    ),
    _adaptive("schedule-free-radam", "Schedule-Free RAdam, foreach: the same bytes, warmed up by itself"),
    Optimizer(
        "schedule-free-sgd",
        "Schedule-Free SGD, foreach: a second copy of the weights",
        "schedule-free",
        moments("z"),
        one_list=True,
        foreach=_BOTH,
    ),
)
