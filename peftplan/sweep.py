"""The service of a grid: one request, fields that take several values each, and a row for every combination."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

from pydantic import ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from peftplan.calibrated import calibrated
from peftplan.catalog.calibration import read_calibration
from peftplan.errors import BadInput, PeftplanError, shown
from peftplan.memory.repeated import Plays
from peftplan.planner import estimate
from peftplan.report import Answer, Cost, GpuFit, Memory, MethodFacts, Report, Time
from peftplan.request import Request

SCHEMA_VERSION = 1
MAX_POINTS = 10**5

Progress = Callable[[float, str], None]


class SweepRow(Answer):
    """One point of the grid: the values of the varied fields, and what an estimate says of that request.

    As JSON the varied fields stand beside the parts of the answer; a field whose name is that of a part
    (`method`, `gpu`) stands in `point` only, which holds them all. A refused point has an `error` and no figures.
    """

    model_config = ConfigDict(extra="ignore")

    point: dict[str, Any]
    memory: Memory | None = None
    method: MethodFacts | None = None
    gpu: GpuFit | None = None
    time: Time | None = None
    cost: Cost | None = None
    notes: tuple[str, ...] = ()  # that do not hold for every row
    error: str | None = None

    @model_serializer(mode="wrap")
    def _beside_the_point(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        parts = handler(self)
        return {**{name: value for name, value in parts["point"].items() if name not in parts}, **parts}


class SweepReport(Answer):
    """A grid's answer: every combination of the values of `over`, the last field varying fastest."""

    schema_version: int
    request: dict[str, Any]  # as given: what the points have in common
    over: dict[str, tuple[Any, ...]]
    rows: tuple[SweepRow, ...]
    notes: tuple[str, ...]


def sweep(
    request: Request,
    over: Mapping[str, Sequence[Any]],
    progress: Progress | None = None,
) -> SweepReport:
    """An estimate at every combination of the values that `over` gives to fields of the request.

    A point that is refused becomes a row with the reason; where all are refused for one reason, that is raised.
    """
    axes = _axes(request, over)
    calibration = read_calibration()
    plays = Plays()
    rows: list[SweepRow] = []
    notes: list[tuple[str, ...]] = []
    errors: list[PeftplanError] = []
    total = prod(len(values) for values in axes.values())
    for number, point in enumerate(_points(axes)):
        asked = request.model_copy(update=point)
        try:
            report = calibrated(estimate(asked, plays), calibration)
        except PeftplanError as error:
            errors.append(error)
            rows.append(SweepRow.model_construct(point=point, error=str(error)))
            continue
        rows.append(_row(point, report))
        notes.append(report.notes)
        if progress is not None:
            progress((number + 1) / total, f"{number + 1:,} of {total:,}")
    if errors and len(errors) == total and len({str(error) for error in errors}) == 1:
        raise errors[0]
    common = _common(notes)
    return SweepReport.model_construct(
        schema_version=SCHEMA_VERSION,
        request=request.model_dump(),
        over={name: tuple(values) for name, values in axes.items()},
        rows=tuple(_without(row, common) for row in rows),
        notes=(*common, *_said_of_errors(len(errors), total)),
    )


def _row(point: dict[str, Any], report: Report) -> SweepRow:
    return SweepRow.model_construct(
        point=point,
        memory=report.memory,
        method=report.method,
        gpu=report.gpu,
        time=report.time,
        cost=report.cost,
        notes=report.notes,
        error=None,
    )


def _points(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*axes.values()):
        yield dict(zip(axes, values))


def _common(notes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Notes that every answer has, in their order."""
    if not notes:
        return ()
    often = Counter(note for some in notes for note in dict.fromkeys(some))
    return tuple(note for note in dict.fromkeys(notes[0]) if often[note] == len(notes))


def _without(row: SweepRow, common: tuple[str, ...]) -> SweepRow:
    left = tuple(note for note in row.notes if note not in common)
    return row.model_copy(update={"notes": left})


def _said_of_errors(refused: int, total: int) -> Iterator[str]:
    if refused:
        yield f"{refused:,} of {total:,} points are refused: their rows say why"


# ---- what may be asked


def _axes(request: Request, over: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The fields and their values, each value as the request takes it."""
    if not over:
        raise BadInput("a sweep varies at least one field; give one such as rank=8,16,32")
    axes = {}
    for name, values in over.items():
        if name not in Request.model_fields:
            known = ", ".join(Request.model_fields)
            raise BadInput(f"{shown(name)} is no field of a request; a sweep can vary {known}")
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise BadInput(f"{name}: {shown(values)} is no list of values; give a list, of one value if need be")
        if not values:
            raise BadInput(f"{name} has no values to sweep over; give one at least")
        axes[name] = [_taken(request, name, value) for value in values]
    total = prod(len(values) for values in axes.values())
    if total > MAX_POINTS:
        raise BadInput(f"the grid has {total:,} points, and {MAX_POINTS:,} is the most; leave out values or a field")
    if request.engine == "trace" or "trace" in axes.get("engine", ()):
        raise BadInput("a sweep is answered by the closed form; leave out engine trace (`compare` takes it)")
    return axes


def _taken(request: Request, name: str, value: Any) -> Any:
    """A value as the request's field takes it, or one line about what it takes."""
    try:
        return getattr(Request.model_validate({"model": request.model, name: value}), name)
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"]
        raise BadInput(f"{name}: {shown(value)} is not allowed; {said[:1].lower()}{said[1:]}") from None
