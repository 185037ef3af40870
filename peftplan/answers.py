"""Answers about many runs: what fits a card, and which cards to take. All bytes are integers of one device."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from peftplan.report import Cost, GpuFit, MemoryFigures, Report, Time

Risk = Literal["none", "low", "moderate", "high"]
Reason = Literal["least risk", "sure", "faster", "not enough"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class AxisLimit(_Frozen):
    """One field alone: its largest value that fits, the others being as asked.

    `next_value` is the value above it, and `next_short_bytes` what that one lacks: both null where there is none.
    The whole interval of `sure_value` lies within the card, and that of values a little above it does not.
    `advised_limit` is what the model was made for, in positions. Of a model and a method, `tried` lists those in
    question.
    """

    axis: str
    among: str  # "from 1 to 100,000,000", "llama models of the catalogue", ...
    asked: int | str
    value: int | str | None
    sure_value: int | str | None
    headroom_bytes: int | None
    next_value: int | str | None
    next_short_bytes: int | None
    advised_limit: int | None = None
    tried: tuple[Choice, ...] = ()


class Choice(_Frozen):
    """A model or a method that was tried; `fits` is null for one that does not go with the request.

    `headroom_bytes` are extrapolated: the verdict is not.
    """

    name: str
    fits: bool | None
    certain: bool | None
    headroom_bytes: int | None


class FrontPoint(_Frozen):
    """Values of the axes, by name."""

    values: dict[str, int | str]
    fits_surely: bool


class Front(_Frozen):
    """Combinations of several axes: the last is the largest that fits with the values before it.

    The others run over powers of two and what was asked. A combination that another one reaches or exceeds on
    every axis that is a number is left out.
    """

    axes: tuple[str, ...]
    points: tuple[FrontPoint, ...]


class PricedChange(_Frozen):
    """One change of a set, made after those before it: what must be held less, and what it costs.

    `adds_s` are seconds of a step of the tokens that the request has in one, `adds_usd` dollars of the whole run:
    null where time, or a price and a length, are not known.
    """

    change: str
    saves_bytes: int
    adds_s: float | None
    adds_frac: float | None  # of the step before it
    adds_usd: float | None
    risk: Risk


class ChangeSet(_Frozen):
    """Changes that make a run fit together, none of them to spare, and the run that they make.

    `why` it is told: it risks least; it is sure to fit where that one is not; it is faster and risks more; or no
    set is enough, and it saves most.
    """

    why: Reason
    risk: Risk  # the highest of its changes
    changes: tuple[PricedChange, ...]
    fits: bool
    certain: bool
    headroom_bytes: int
    adds_s: float | None
    adds_usd: float | None
    request: dict[str, Any]


class FitReport(_Frozen):
    """Whether a run fits its card, what the most is that does, and what to change where it does not.

    `changes` are those of the first set: the least risk, then the least time. `sets` holds it and its alternatives.
    """

    fits: bool
    request: dict[str, Any]
    estimate: Report
    changes: tuple[PricedChange, ...]
    axes: tuple[AxisLimit, ...] = ()
    front: Front | None = None
    sets: tuple[ChangeSet, ...] = ()
    notes: tuple[str, ...] = ()


class Rented(_Frozen):
    """Where a machine is rented, and its price; `date` is the day on which the price was read."""

    instance: str
    region: str
    spot: bool
    usd_per_gpu_hour: float
    date: str
    source: str
    confidence: str


class RecommendRow(_Frozen):
    """One way to carry a run out: a card, how many of them, and who rents them out.

    `on_front`: no other row that is as sure to fit is as fast and as cheap. `within` the budget and the deadline,
    by the middle of its interval. `reason` says why the row stands where it does.
    """

    gpu: str
    num_gpus: int
    provider: str
    request: dict[str, Any]
    memory: MemoryFigures
    fit: GpuFit
    time: Time | None
    cost: Cost | None
    rented: Rented
    on_front: bool
    within: bool
    reason: str


class Unfit(_Frozen):
    """A card on which the run does not fit, and by how much; not ranked."""

    gpu: str
    num_gpus: int
    short_bytes: int
    certain: bool


class RecommendReport(_Frozen):
    """Ways to carry a run out: those within the limits by their dollars, then the others by how far they miss them.

    `recommended` is the place of the row that is advised, null where none keeps the limits. `num_tokens` of the run
    are the same in every row; `assumed_tokens`: they were not given.
    """

    request: dict[str, Any]
    num_tokens: int | None
    assumed_tokens: bool
    budget_usd: float | None
    deadline_s: float | None
    recommended: int | None
    rows: tuple[RecommendRow, ...]
    unfit: tuple[Unfit, ...]
    unpriced: tuple[str, ...]  # cards that fit, and that nobody in the catalogue rents out
    notes: tuple[str, ...]
