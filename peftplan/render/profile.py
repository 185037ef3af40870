"""The screen of a measured run: predicted, measured and error of every part; of a list, one row a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from peftplan.measure.profile.plan import CPU
from peftplan.measure.profile.report import FIGURES, MOMENTS, PARTS, RESIDENT, ComparedRow, ProfileReport
from peftplan.measure.profile.session import Done
from peftplan.render.blocks import Block, Column, Notes, Table, Text
from peftplan.render.estimate import settings_line, title_line
from peftplan.render.words import moment_label
from peftplan.units import format_bytes

_TITLES = {
    FIGURES: "Memory",
    MOMENTS: "The step, moment by moment",
    RESIDENT: "What stays from step to step, and activations at the end of forward (requested bytes)",
    PARTS: "The peak, part by part",
}
_OUTCOMES = {
    "completed": "completed",
    "out_of_memory": "ran out of memory",
    "failed": "failed",
    "interrupted": "was interrupted",
}
COLUMNS = (
    *("name", "outcome", "within_tolerance", "predicted_allocated_bytes", "measured_allocated_bytes"),
    *("error_frac", "predicted_reserved_bytes", "measured_reserved_bytes", "predicted_device_bytes"),
    *("measured_device_bytes", "step_s", "tokens_per_s", "error"),
)


def signed(error: float | None) -> str:
    """A signed error for people: `+0.42 %`."""
    return "-" if error is None else f"{error:+.2%}".replace("%", " %")


def profile_blocks(report: ProfileReport) -> Iterator[Block]:
    """What was measured beside what was predicted, most wanted first."""
    yield Text(title_line(report), "title")
    yield Text(settings_line(report))
    yield Text(f"{'CPU run' if report.device == CPU else 'Run'} on {report.measured.hardware.gpu}.")
    yield Text(*_verdict(report))
    for group, title in _TITLES.items():
        rows = [row for row in report.rows if row.group == group]
        if rows and any(row.measured_bytes is not None for row in rows):
            yield _compared(title, rows)
    if report.measured.measured.step_s is not None:
        yield _times(report)
    yield Notes("Notes", report.notes)
    if report.record is not None:
        yield Text(f"Recorded in {report.record}")


def _verdict(report: ProfileReport) -> tuple[str, str]:
    outcome = _OUTCOMES[report.outcome]
    judged = [row for row in report.rows if row.within is not None]
    engine = {"closed": "closed form", "trace": "trace"}[report.engine]
    if report.outcome == "completed":
        limits = ", ".join(
            f"{row.name} {signed(row.error_frac)} (within {row.tolerance_frac:.0%})" for row in judged
        )
        word = "agrees with" if report.within_tolerance else "is off"
        return f"The run {outcome}; the {engine} {word} the measurement: {limits}", _tone(report)
    fits = "-" if report.gpu is None else "fits" if report.gpu.fits else "does not fit"
    return f"The run {outcome}; the {engine} said: {fits}", _tone(report)


def _tone(report: ProfileReport) -> str:
    return "good" if report.within_tolerance else "bad"


def _compared(title: str, rows: Sequence[ComparedRow]) -> Table:
    return Table(
        title,
        (
            Column(""),
            Column("predicted", right=True),
            Column("measured", right=True),
            Column("error", right=True),
        ),
        tuple(
            (
                moment_label(row.name) if row.group == MOMENTS else row.name.replace("_", " "),
                _size(row.predicted_bytes),
                _size(row.measured_bytes),
                signed(row.error_frac),
            )
            for row in rows
        ),
    )


def _size(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else format_bytes(num_bytes)


def _times(report: ProfileReport) -> Table:
    figures = report.measured.measured
    each = figures.step_s_each
    rows = [
        ("step", f"{figures.step_s:.4f} s, median of {len(each)} ({min(each):.4f} to {max(each):.4f} s)"),
        ("tokens", f"{figures.tokens_per_s:,.1f} a second"),
    ]
    if figures.hfu_frac is not None:
        rows.append(("share of the GPU's peak rate", f"{figures.hfu_frac:.1%} (matrix products with weights only)"))
    if figures.utilisation_frac is not None:
        rows.append(("utilisation", f"{figures.utilisation_frac:.0%}"))
    if figures.power_w is not None:
        rows.append(("power", f"{figures.power_w:.0f} W"))
    if figures.energy_j is not None:
        rows.append(("energy", f"{figures.energy_j:.1f} J a step"))
    return Table("Time", (Column(""), Column("measured")), tuple(rows))


# ---- lists


def grid_blocks(runs: Sequence[Done]) -> Iterator[Block]:
    """One row a run."""
    columns = (
        Column("run"),
        Column("outcome"),
        Column("predicted", right=True),
        Column("allocated", right=True),
        Column("error", right=True),
        Column("reserved", right=True),
        Column("device", right=True),
        Column("step", right=True),
    )
    yield Table("Runs", columns, tuple(_grid_row(done) for done in runs))
    told = [f"{done.name}: {done.error}" for done in runs if done.error]
    if told:
        yield Notes("Runs without figures", tuple(told))


def _grid_row(done: Done) -> tuple[str, ...]:
    report = done.report
    if report is None:
        return (done.name, "failed", *["-"] * 6)
    errors = {row.name: row.error_frac for row in report.rows if row.group == FIGURES}
    step_s = report.measured.measured.step_s
    figures = report.measured.measured
    ended = report.outcome == "completed"
    return (
        done.name,
        report.outcome.replace("_", " ") + ("" if report.within_tolerance else " (!)"),
        _size(report.memory.peak_allocated_bytes),
        _size(figures.allocated_bytes),
        signed(errors.get("peak allocated")) if ended else "-",
        signed(errors.get("peak reserved")) if ended else "-",
        signed(errors.get("device")) if ended else "-",
        "-" if step_s is None else f"{step_s:.3f} s",
    )


def dry_blocks(rows: Iterable[tuple[str, ...]]) -> Iterator[Block]:
    """What a list would run, and what is predicted of it."""
    heads = ("run", "allocated", "reserved", "device", "fits")
    columns = tuple(Column(head, right=0 < number < 4) for number, head in enumerate(heads))
    yield Table("Runs, as predicted by the closed form; none was carried out", columns, tuple(rows))


def grid_rows(runs: Sequence[Done]) -> Iterator[tuple[object, ...]]:
    """The same as values, under COLUMNS."""
    for done in runs:
        report = done.report
        if report is None:
            yield (done.name, "failed", False, *[None] * (len(COLUMNS) - 4), done.error)
            continue
        memory, measured = report.memory, report.measured.measured
        yield (
            done.name,
            report.outcome,
            report.within_tolerance,
            memory.peak_allocated_bytes,
            measured.allocated_bytes,
            next(row.error_frac for row in report.rows if row.name == "peak allocated"),
            memory.peak_reserved_bytes,
            measured.reserved_bytes,
            memory.device_bytes,
            measured.device_bytes,
            measured.step_s,
            measured.tokens_per_s,
            done.error,
        )
