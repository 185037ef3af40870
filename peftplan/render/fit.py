"""The screen of a fit: the verdict, how far each axis goes, and what to change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from peftplan.answers import AxisLimit, ChangeSet, Choice, FitReport, Front, PricedChange
from peftplan.render.blocks import Block, Column, Notes, Table, Text
from peftplan.render.estimate import settings_line, title_line
from peftplan.render.table_csv import rows_csv
from peftplan.render.words import verdict
from peftplan.units import format_bytes, format_duration, format_usd

NONE = "none"
CSV_COLUMNS = (
    *("kind", "name", "asked", "value", "sure_value", "headroom_bytes", "next_value", "next_short_bytes"),
    *("saves_bytes", "adds_s", "adds_usd", "risk"),
)
_MODELS_SHOWN = 8


def fit_blocks(report: FitReport) -> Iterator[Block]:
    """The verdict first, then the most that fits, then what to change."""
    yield Text(title_line(report.estimate), "title")
    yield Text(settings_line(report.estimate))
    yield Text(*verdict(report.estimate))
    for made in report.sets:
        yield from _set_blocks(made, report)
    yield _limits(report.axes)
    for limit in report.axes:
        if limit.tried:
            yield _choices(limit)
    if report.front is not None:
        yield _front(report.front)
    if report.notes:
        yield Notes("Notes", report.notes)


def _set_blocks(made: ChangeSet, report: FitReport) -> Iterator[Block]:
    """A set of changes, each beside those before it, and what they come to."""
    timed = any(change.adds_s is not None for change in made.changes)
    priced = any(change.adds_usd is not None for change in made.changes)
    columns = [Column("change"), Column("saves", right=True)]
    columns += [Column("time", right=True)] * timed + [Column("run", right=True)] * priced
    rows = [tuple(_cells(change, timed, priced)) for change in made.changes]
    if len(rows) > 1:
        together = PricedChange.model_construct(
            change="together",
            saves_bytes=sum(change.saves_bytes for change in made.changes),
            adds_s=made.adds_s,
            adds_frac=_frac(made, report),
            adds_usd=made.adds_usd,
            risk=made.risk,
        )
        rows.append(tuple(_cells(together, timed, priced)))
    strong = frozenset({len(rows) - 1}) if len(rows) > 1 else frozenset()
    yield Table(_set_title(made), (*columns, Column("risk")), tuple(rows), strong)
    if not made.fits:
        yield Text(
            "Choose another card (`peftplan recommend` lists what holds it) or a smaller model (`--axis model`).",
            "warn",
        )


def _set_title(made: ChangeSet) -> str:
    room = format_bytes(abs(made.headroom_bytes))
    if not made.fits:
        return f"No changes are enough: those that save most still need {room} more"
    what = {
        "least risk": "This makes it fit" if len(made.changes) == 1 else "Together these make it fit",
        "sure": "To be sure",
        "faster": "Faster, at more risk",
    }[made.why]
    return f"{what}: {room} to spare" + ("" if made.certain else ", uncertain")


def _cells(change: PricedChange, timed: bool, priced: bool) -> Iterator[str]:
    yield change.change
    yield format_bytes(change.saves_bytes)
    if timed:
        yield _time(change)
    if priced:
        yield "-" if change.adds_usd is None else _signed(change.adds_usd, format_usd)
    yield change.risk


def _time(change: PricedChange) -> str:
    if change.adds_s is None:
        return "-"
    if change.adds_frac is None:
        return _signed(change.adds_s, format_duration)
    return f"{change.adds_frac:+.0%}"


def _signed(value: float, shown: Any) -> str:
    return ("-" if value < 0 else "+") + str(shown(abs(value)))


def _frac(made: ChangeSet, report: FitReport) -> float | None:
    time = report.estimate.time
    return None if time is None or made.adds_s is None else made.adds_s / time.step_s


def _limits(limits: Sequence[AxisLimit]) -> Table:
    """How far each axis goes alone."""
    return Table(
        "The most that fits, each alone",
        (
            Column("axis"),
            Column("asked"),  # two columns of numbers at most: tables of more are cut, and lose their words
            Column("largest", right=True),
            Column("for sure", right=True),
            Column("one step more"),
        ),
        tuple(
            (
                _axis(limit),
                _short(limit.asked),
                _short(limit.value),
                _short(limit.sure_value),
                _next(limit),
            )
            for limit in limits
        ),
        below="for sure: the whole interval lies within the card",
    )


def _axis(limit: AxisLimit) -> str:
    name = limit.axis.replace("_", " ")
    family = limit.among.removesuffix("models of the catalogue").strip()
    return f"{name} ({family or 'all'})" if limit.axis == "model" else name


def _short(value: int | str | None) -> str:
    """A value as a cell: numbers in groups, models without their organisation."""
    if value is None:
        return NONE
    return f"{value:,}" if isinstance(value, int) else value.rpartition("/")[2]


def _next(limit: AxisLimit) -> str:
    if limit.next_value is None or limit.next_short_bytes is None:
        return "-"
    return f"{_short(limit.next_value)}: {format_bytes(limit.next_short_bytes)} short"


def _choices(limit: AxisLimit) -> Table:
    """Models that were tried, those around the answer; or all methods."""
    fitting = next((n for n, choice in enumerate(limit.tried) if choice.fits), len(limit.tried))
    start = max(0, fitting - _MODELS_SHOWN // 2) if limit.axis == "model" else 0
    shown = limit.tried[start : start + _MODELS_SHOWN] if limit.axis == "model" else limit.tried
    return Table(
        f"By {_axis(limit)}, the largest first",
        (Column(limit.axis), Column("fits"), Column("left, about", right=True)),
        tuple((choice.name, _verdict(choice), _left(choice.headroom_bytes)) for choice in shown),
    )


def _verdict(choice: Choice) -> str:
    if choice.fits is None:
        return "does not go with the request"
    return ("yes" if choice.fits else "no") + ("" if choice.certain else "?")


def _left(headroom_bytes: int | None) -> str:
    return "-" if headroom_bytes is None else format_bytes(headroom_bytes)


def _front(front: Front) -> Table:
    """Combinations of two axes."""
    return Table(
        f"The most that fits, {' by '.join(axis.replace('_', ' ') for axis in front.axes)}",
        (*(Column(axis.replace("_", " "), right=True) for axis in front.axes), Column("")),
        tuple(
            (*(_short(point.values[axis]) for axis in front.axes), "" if point.fits_surely else "uncertain")
            for point in front.points
        ),
    )


def fit_csv(report: FitReport) -> str:
    """Axes, points of the front and changes as rows, told apart by `kind`."""
    gpu = report.estimate.gpu
    rows = [{"kind": "request", "name": "as asked", "headroom_bytes": gpu.headroom_bytes if gpu else None}]
    rows += [{"kind": "axis", "name": limit.axis, **limit.model_dump()} for limit in report.axes]
    for point in report.front.points if report.front else ():
        values = " ".join(f"{axis}={value}" for axis, value in point.values.items())
        rows.append({"kind": "front", "name": values})
    rows += [{"kind": "change", "name": change.change, **change.model_dump()} for change in report.changes]
    return rows_csv(CSV_COLUMNS, ([row.get(name) for name in CSV_COLUMNS] for row in rows))
