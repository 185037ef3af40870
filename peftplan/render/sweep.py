"""The screen of a sweep: a line for each point, the varied fields in front."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from peftplan.render.blocks import Block, Column, Notes, Table, Text
from peftplan.render.table_csv import rows_csv
from peftplan.render.time_cost import hours, shown_s
from peftplan.report import GpuFit, MethodFacts
from peftplan.sweeps import SweepReport, SweepRow
from peftplan.units import format_bytes, format_count, format_usd

SHOWN_AT_MOST = 200  # lines of a screen; files and pipes hold all
_ERRORS_SHOWN = 6
_BLANK = "-"


class Figure(NamedTuple):
    """A column of figures: its head, the part of a row that it is of, and that part's cell."""

    head: str
    part: str
    words: Callable[[Any], str | None]

    def cell(self, row: SweepRow) -> str | None:
        """The row's cell, None where it has none."""
        part = getattr(row, self.part)
        return None if part is None else self.words(part)


def _adapter(method: MethodFacts) -> str | None:
    size = method.adapter_checkpoint_bytes
    return format_bytes(size) if size else None


def _fits(gpu: GpuFit) -> str:
    return ("yes" if gpu.fits else "no") + ("" if gpu.certain else "?")


FIGURES = (
    Figure("trainable", "method", lambda method: format_count(method.num_trainable_params)),
    Figure("adapter", "method", _adapter),
    Figure("allocated", "memory", lambda memory: format_bytes(memory.peak_allocated_bytes)),
    Figure("reserved", "memory", lambda memory: format_bytes(memory.peak_reserved_bytes)),
    Figure("device", "memory", lambda memory: format_bytes(memory.device_bytes)),
    Figure("fits", "gpu", _fits),
    Figure("to spare", "gpu", lambda gpu: format_bytes(gpu.headroom_bytes)),
    Figure("step", "time", lambda time: shown_s(time.step_s)),
    Figure("tokens/s", "time", lambda time: f"{time.tokens_per_s:,.0f}"),
    Figure("run", "cost", lambda cost: hours(cost.hours)),
    Figure("cost", "cost", lambda cost: format_usd(cost.usd)),
)


def sweep_blocks(report: SweepReport, shown: int | None = None) -> Iterator[Block]:
    """What was varied, a line for each point (the first `shown`), refused points and why, notes."""
    yield Text(headline(report), "title")
    yield Text(varied(report))
    yield points_table(report, shown)
    errors = tuple(_errors(report))
    if errors:
        yield Notes("Refused points", errors)
    yield Notes("Notes", report.notes)


def headline(report: SweepReport) -> str:
    """Model, method and number of points, in one line."""
    asked = report.request
    named = [str(asked[name]) for name in ("model", "method", "gpu") if name not in report.over and asked[name]]
    return f"{', '.join(named) or 'sweep'}: {len(report.rows):,} points"


def varied(report: SweepReport) -> str:
    """The varied fields with their values, or with the first and the last."""
    said = []
    for name, values in report.over.items():
        words = [field_value(value) for value in values]
        if len(words) > 8:
            words = [*words[:3], "...", words[-1]]
        said.append(f"{name} {', '.join(words)}")
    return "; ".join(said)


def field_value(value: Any) -> str:
    """A field's value for people."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return "+".join(map(str, value)) or "none"
    if isinstance(value, Mapping):
        return str(value.get("_name_or_path") or value.get("model_type") or "a mapping")
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def points_table(report: SweepReport, shown: int | None = None) -> Table:
    """One line a point; columns that no point has are left out."""
    rows = report.rows[:shown]
    figures = [figure for figure in FIGURES if any(figure.cell(row) is not None for row in rows)]
    left = len(report.rows) - len(rows)
    below = f"and {left:,} more points: --csv, --json and --out hold all" if left else ""
    return Table(
        "",
        (
            *(Column(name, right=_is_number(report.over[name])) for name in report.over),
            *(Column(figure.head, right=True) for figure in figures),
        ),
        tuple(
            (
                *(field_value(row.point[name]) for name in report.over),
                *(_BLANK if (cell := figure.cell(row)) is None else cell for figure in figures),
            )
            for row in rows
        ),
        below=below,
        names=len(report.over),
    )


def _is_number(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _errors(report: SweepReport) -> Iterator[str]:
    """Each reason once, with how many points it refuses and the first of them."""
    found: dict[str, list[SweepRow]] = {}
    for row in report.rows:
        if row.error is not None:
            found.setdefault(row.error, []).append(row)
    for number, (error, rows) in enumerate(found.items()):
        if number == _ERRORS_SHOWN:
            yield f"and {len(found) - number} other reasons: --csv and --json name each"
            return
        first = ", ".join(f"{name} {field_value(value)}" for name, value in rows[0].point.items())
        more = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
        yield f"{first}{more}: {error}"


# ---- rows as data


def sweep_csv(report: SweepReport) -> str:
    """Every point as one line, its columns named as in the JSON."""
    header, rows = flat_rows(report)
    return rows_csv(header, rows)


def flat_rows(report: SweepReport) -> tuple[list[str], list[list[Any]]]:
    """Column names, and every point's cells: the varied fields, then `memory.*`, `method.*` ..., then `error`."""
    flat = [_flat_row(row) for row in report.rows]
    names = dict.fromkeys(name for row in flat for name in row)
    header = [name for name in names if name != "error"] + ["error"]
    return header, [[row.get(name) for name in header] for row in flat]


def _flat_row(row: SweepRow) -> dict[str, Any]:
    flat = {name: value if _is_plain(value) else field_value(value) for name, value in row.point.items()}
    for name in ("memory", "method", "gpu", "time", "cost"):
        part = getattr(row, name)
        if part is not None:
            flat.update(_flattened(part.model_dump(exclude={"breakdown"}), f"{name}."))
    flat["error"] = row.error
    return flat


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _flattened(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            yield prefix + key, "; ".join(map(str, value))
        else:
            yield prefix + key, value
