"""The screen of a recommendation: the advised row, the front, what it beats, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from peftplan.answers import RecommendReport, RecommendRow
from peftplan.render.blocks import Block, Column, Notes, Table, Text
from peftplan.render.table_csv import rows_csv
from peftplan.units import HOUR_S, format_bytes, format_count, format_duration, format_usd

SHOWN = 8  # rows of each table that stand behind the front
CSV_COLUMNS = (
    *("gpu", "num_gpus", "provider", "instance", "region", "spot", "usd_per_gpu_hour", "price_date"),
    *("hours_low", "hours", "hours_high", "usd_low", "usd", "usd_high", "step_s", "tokens_per_s"),
    *(
        "micro_batch",
        "grad_accum",
        "device_bytes",
        "headroom_bytes",
        "certain",
        "on_front",
        "within",
        "recommended",
        "reason",
    ),
)


def recommend_blocks(report: RecommendReport) -> Iterator[Block]:
    """What to take and why, then the alternatives."""
    yield Text(_title(report), "title")
    yield Text(_settings(report))
    yield from _advice(report)
    front = [row for row in report.rows if row.on_front and row.within]
    if front:
        yield _front(front, report)
    others = [row for row in report.rows if row.within and not row.on_front]
    if others:
        yield _table(_first_of("Beaten by others", others), others[:SHOWN], report)
    missed = [row for row in report.rows if not row.within and row.cost is not None]
    if missed:
        yield _table(_first_of(_missed_title(report), missed), missed[:SHOWN], report)
    untold = [row for row in report.rows if row.cost is None]
    if untold:
        yield _table(_first_of("Without hours or dollars", untold), untold[:SHOWN], report)
    if report.unfit:
        yield _unfit(report)
    if report.notes:
        yield Notes("Notes", report.notes)


def _title(report: RecommendReport) -> str:
    asked = report.request
    model = asked["model"] if isinstance(asked["model"], str) else "the config"
    length = f", {format_count(report.num_tokens)} tokens" if report.num_tokens else ""
    return f"{model}, {asked['method']}{length}"


def _settings(report: RecommendReport) -> str:
    """The run in one line, and the limits."""
    asked = report.request
    text = f"{asked['micro_batch']} x {asked['seq_len']} tokens a card, {asked['precision']}, {asked['optimizer']}"
    if report.budget_usd is not None:
        text += f"; at most {format_usd(report.budget_usd)}"
    if report.deadline_s is not None:
        text += f"; within {format_duration(report.deadline_s)}"
    return text


def _advice(report: RecommendReport) -> Iterator[Text]:
    """The advised row in words."""
    if report.recommended is None:
        if not report.rows:
            yield Text("No card of the catalogue that is rented out holds this run.", "bad")
        elif any(row.cost is not None for row in report.rows):
            yield Text("Nothing keeps the limits; the nearest are below.", "bad")
        else:
            yield Text("No hours and dollars are known, so nothing is ranked.", "warn")
        return
    row = report.rows[report.recommended]
    cost = row.cost
    assert cost is not None
    yield Text(
        f"Take {row.num_gpus} x {row.fit.name} at {_where(row)}: {_hours(row)}, {format_usd(cost.usd)}", "good"
    )
    price = f"{format_usd(row.rented.usd_per_gpu_hour)} a GPU-hour" + (", spot" if row.rented.spot else "")
    rented = row.rented
    day = f", read {rented.date} ({rented.confidence} confidence)" if rented.date else ""
    yield Text(
        f"Between {_duration(cost.hours_low)} and {_duration(cost.hours_high)}, {format_usd(cost.usd_low)} and "
        f"{format_usd(cost.usd_high)}; {price}{day}; {format_bytes(row.fit.headroom_bytes)} of memory to spare"
    )


def _where(row: RecommendRow) -> str:
    rented = row.rented
    return " ".join(filter(None, (row.provider, rented.instance, rented.region and f"({rented.region})")))


def _hours(row: RecommendRow) -> str:
    return "-" if row.cost is None else _duration(row.cost.hours)


def _duration(hours: float) -> str:
    return format_duration(hours * HOUR_S)


def _first_of(title: str, rows: Sequence[RecommendRow]) -> str:
    return f"{title} (the first {SHOWN} of {len(rows)})" if len(rows) > SHOWN else title


def _missed_title(report: RecommendReport) -> str:
    missed = ["past the deadline"] * (report.deadline_s is not None)
    missed += ["over the budget"] * (report.budget_usd is not None)
    return " or ".join(missed).capitalize()


def _front(rows: Sequence[RecommendRow], report: RecommendReport) -> Table:
    """Rows that nothing beats, with the intervals of their hours and dollars."""
    advised = None if report.recommended is None else report.rows[report.recommended]
    return Table(
        "The front: nothing is both faster and cheaper",
        (Column("cards"), Column("hours", right=True), Column("dollars", right=True), Column("why")),
        tuple(
            (
                _mark(row is advised) + _cards(row, report),
                *_intervals(row),
                row.reason,
            )
            for row in rows
        ),
        below="in brackets: the interval, from low to high",
    )


def _cards(row: RecommendRow, report: RecommendReport) -> str:
    """How many of what, from whom, and the micro-batch where that is not as asked."""
    batch = row.request["micro_batch"]
    tuned = f", batch {batch}" if batch != report.request["micro_batch"] else ""
    return f"{row.num_gpus} x {row.gpu}, {row.provider}{tuned}"


def _mark(advised: bool) -> str:
    return "> " if advised else "  "


def _intervals(row: RecommendRow) -> tuple[str, str]:
    """Hours and dollars with their intervals."""
    cost = row.cost
    assert cost is not None
    digits = 1 if cost.hours_high >= 10 else 2
    hours = f"{cost.hours:,.{digits}f} ({cost.hours_low:,.{digits}f}-{cost.hours_high:,.{digits}f})"
    return hours, f"{format_usd(cost.usd)} ({format_usd(cost.usd_low)}-{format_usd(cost.usd_high)})"


def _table(title: str, rows: Sequence[RecommendRow], report: RecommendReport) -> Table:
    """Rows with their hours, dollars and reasons: two columns of numbers, so that no width cuts them apart."""
    return Table(
        title,
        (Column("cards"), Column("hours", right=True), Column("dollars", right=True), Column("why")),
        tuple(
            (
                _cards(row, report),
                _hours(row),
                "-" if row.cost is None else format_usd(row.cost.usd),
                row.reason,
            )
            for row in rows
        ),
    )


def _unfit(report: RecommendReport) -> Table:
    """Cards that do not hold the run; not ranked."""
    return Table(
        "Does not fit, not ranked",
        (Column("cards"), Column("short of", right=True), Column("")),
        tuple(
            (f"{one.num_gpus} x {one.gpu}", format_bytes(one.short_bytes), "" if one.certain else "uncertain")
            for one in report.unfit[:SHOWN]
        ),
    )


def recommend_csv(report: RecommendReport) -> str:
    """One line a row, in the order of the answer."""
    return rows_csv(CSV_COLUMNS, (_cells(report, number, row) for number, row in enumerate(report.rows)))


def _cells(report: RecommendReport, number: int, row: RecommendRow) -> list[object]:
    cost, time, rented = row.cost, row.time, row.rented
    hours = (cost.hours_low, cost.hours, cost.hours_high) if cost else (None,) * 3
    dollars = (cost.usd_low, cost.usd, cost.usd_high) if cost else (None,) * 3
    return [
        *(row.gpu, row.num_gpus, row.provider, rented.instance, rented.region, rented.spot),
        *(rented.usd_per_gpu_hour, rented.date, *hours, *dollars),
        *((time.step_s, time.tokens_per_s) if time else (None, None)),
        *(
            row.request["micro_batch"],
            row.request["grad_accum"],
            row.memory.device_bytes,
            row.fit.headroom_bytes,
            row.fit.certain,
        ),
        *(row.on_front, row.within, number == report.recommended, row.reason),
    ]
