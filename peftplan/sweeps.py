"""The service of a grid: one request, fields that take several values each, and a row for every combination."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import product
from math import prod
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from peftplan.breakdown import Node
from peftplan.calibrated import calibrated
from peftplan.catalog.calibration import read_calibration
from peftplan.errors import BadInput, PeftplanError, shown
from peftplan.memory.repeated import Plays
from peftplan.planner import estimate
from peftplan.report import Cost, GpuFit, MemoryFigures, MethodFacts, Report, Time
from peftplan.request import Request
from peftplan.specs.method import MethodSpec
from peftplan.specs.run import StepSpec

SCHEMA_VERSION = 1
MAX_POINTS = 10**5
# Grids up to here are answered as single runs are, which takes from 10 to 100 ms a point.
EVERY_BLOCK_UP_TO = 100
EXTRAPOLATED = (
    "what is reserved, the device's memory and what is to spare are extrapolated from the blocks that are played "
    f"once, as in every sweep of more than {EVERY_BLOCK_UP_TO} points; `estimate` replays every block, and so does "
    "a sweep with --every-block"
)

Progress = Callable[[float, str], None]

# Fields by what they change of a point: its model and method and how the step is run; the step's size; neither,
# as a GPU's capacity or a price. Points are answered in that order, so that neighbours have most in common.
_SIZES = ("seq_len", "micro_batch")
_KINDS = {"model", "method", "precision", "loop", "grad_accum", "transformers", "peft", "bitsandbytes", "torch"} | {
    field.name for spec in (MethodSpec, StepSpec) for field in fields(spec)
}


class SweepMemory(MemoryFigures):
    """The figures of an estimate's memory; the parts of the peak where they were asked for."""

    breakdown: Node | None = None


class SweepRow(BaseModel):
    """One point of the grid: the values of the varied fields, and what an estimate says of that request.

    As JSON the varied fields stand beside the parts of the answer; a field whose name is that of a part
    (`method`, `gpu`) stands in `point` only, which holds them all. A refused point has an `error` and no figures.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    point: dict[str, Any]
    memory: SweepMemory | None = None
    method: MethodFacts | None = None
    gpu: GpuFit | None = None
    time: Time | None = None
    cost: Cost | None = None
    notes: tuple[str, ...] = ()  # those that do not hold for every point
    error: str | None = None

    @model_serializer(mode="wrap")
    def _beside_the_point(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        parts = handler(self)
        return {**{name: value for name, value in parts["point"].items() if name not in parts}, **parts}


class SweepReport(BaseModel):
    """A grid's answer: every combination of the values of `over`, the last field varying fastest."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    schema_version: int
    request: dict[str, Any]  # as given: what the points have in common
    over: dict[str, tuple[Any, ...]]
    rows: tuple[SweepRow, ...]
    notes: tuple[str, ...]


def sweep(
    request: Request,
    over: Mapping[str, Sequence[Any]],
    *,
    every_block: bool | None = None,
    breakdown: bool = False,
    progress: Progress | None = None,
) -> SweepReport:
    """An estimate at every combination of the values that `over` gives to fields of the request.

    A point that is refused becomes a row with the reason; where all are refused for one reason, that is raised.
    `every_block`: what is reserved comes of a replay of every block, as it does in an estimate; default: up to
    `EVERY_BLOCK_UP_TO` points, beyond it is extrapolated; every other figure is an estimate's either way.
    `breakdown`: the parts of every peak too. `progress` is called with the share that is done, and that in words.
    """
    axes = _axes(request, over)
    points = [dict(zip(axes, values)) for values in product(*axes.values())]
    rows: list[SweepRow | None] = [None] * len(points)
    errors: list[PeftplanError] = []
    whole = len(points) <= EVERY_BLOCK_UP_TO if every_block is None else every_block
    calibration, plays = read_calibration(), Plays(whole)
    for done, number in enumerate(_order(axes)):
        point = points[number]
        try:
            report = estimate(request.model_copy(update=point), recipes=False, breakdown=breakdown, plays=plays)
            rows[number] = _row(point, calibrated(report, calibration), breakdown)
        except PeftplanError as error:
            errors.append(error)
            rows[number] = SweepRow.model_construct(point=point, error=str(error))
        if progress is not None:
            progress((done + 1) / len(points), f"{done + 1:,} of {len(points):,}")
    if len(errors) == len(points) and len({str(error) for error in errors}) == 1:
        raise errors[0]
    answered = [row for row in rows if row is not None]
    common = _common([row.notes for row in answered if row.error is None])
    return SweepReport.model_construct(
        schema_version=SCHEMA_VERSION,
        request=request.model_dump(),
        over={name: tuple(values) for name, values in axes.items()},
        rows=tuple(_without(row, common) for row in answered),
        notes=(*common, *_own_notes(len(errors), len(points), whole)),
    )


def _row(point: dict[str, Any], report: Report, breakdown: bool) -> SweepRow:
    memory = dict(report.memory.__dict__)
    if not breakdown:
        memory["breakdown"] = None
    return SweepRow.model_construct(
        point=point,
        memory=SweepMemory.model_construct(**memory),
        method=report.method,
        gpu=report.gpu,
        time=report.time,
        cost=report.cost,
        notes=report.notes,
        error=None,
    )


def _order(axes: Mapping[str, Sequence[Any]]) -> Iterator[int]:
    """The points' numbers in the order in which they are answered."""
    names = list(axes)
    steps = {name: prod(len(axes[later]) for later in names[place + 1 :]) for place, name in enumerate(names)}
    ranked = sorted(names, key=lambda name: 1 + _SIZES.index(name) if name in _SIZES else 3 * (name not in _KINDS))
    for places in product(*(range(len(axes[name])) for name in ranked)):
        yield sum(place * steps[name] for place, name in zip(places, ranked))


def _common(notes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Notes that every answer has, in their order."""
    often = Counter(note for some in notes for note in dict.fromkeys(some))
    return tuple(note for note in dict.fromkeys(notes[0]) if often[note] == len(notes)) if notes else ()


def _without(row: SweepRow, common: tuple[str, ...]) -> SweepRow:
    left = tuple(note for note in row.notes if note not in common)
    return row.model_copy(update={"notes": left})


def _own_notes(refused: int, total: int, every_block: bool) -> Iterator[str]:
    if not every_block:
        yield EXTRAPOLATED
    if refused:
        yield f"{refused:,} of {total:,} points are refused: their rows say why"


# ---- what may be asked


def _axes(request: Request, over: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The fields and their values, each value as the request takes it."""
    if not over:
        raise BadInput("a sweep varies at least one field; give one such as rank=8,16,32")
    for name, values in over.items():
        if name not in Request.model_fields:
            known = ", ".join(Request.model_fields)
            raise BadInput(f"{shown(name)} is no field of a request; a sweep can vary {known}")
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise BadInput(f"{name}: {shown(values)} is no list of values; give a list, of one value if need be")
        if not values:
            raise BadInput(f"{name} has no values to sweep over; give one at least")
    total = prod(len(values) for values in over.values())
    if total > MAX_POINTS:
        raise BadInput(f"the grid has {total:,} points, and {MAX_POINTS:,} is the most; leave out values or fields")
    axes = {name: [_taken(request, name, value) for value in values] for name, values in over.items()}
    if request.engine != "closed" or any(engine != "closed" for engine in axes.get("engine", ())):
        raise BadInput("a sweep is answered by the closed form; leave --engine trace to `estimate` and `compare`")
    return axes


def _taken(request: Request, name: str, value: Any) -> Any:
    """A value as the request's field takes it, or one line about what it takes."""
    try:
        return getattr(Request.model_validate({"model": request.model, name: value}), name)
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"]
        raise BadInput(f"{name}: {shown(value)} is not allowed; {said[:1].lower()}{said[1:]}") from None
