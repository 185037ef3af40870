"""The screen of a validation: how far predictions are from what was measured, and what could not be compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from peftplan.measured import BYTE_METRICS
from peftplan.render.blocks import Block, Column, Notes, Table, Text
from peftplan.render.table_csv import rows_csv
from peftplan.scores import Group, Score, Summary, Validation, grouped
from peftplan.units import format_bytes

_REASONS_SHOWN = 12
_WORST_SHOWN = 8
_BY = {"engine": "By engine", "metric": "By metric", "method": "By method", "source": "By source"}


def validation_blocks(answer: Validation) -> Iterator[Block]:
    """The verdict, the errors in groups, the worst configurations, what is apart, what was left out and why."""
    yield Text(headline(answer.summary), "title")
    yield Text(*verdict(answer))
    yield Text(_outcomes(answer.summary))
    for by, title in _BY.items():
        groups = [group for group in answer.groups if group.by == by]
        if groups and not (by == "engine" and len(groups) == 1):
            yield group_table(title, groups)
    if answer.apart:
        yield group_table("Apart: not the stock stack, not counted", answer.apart)
    yield from _worst(answer.rows)
    if answer.excluded:
        yield _excluded(answer)
    yield Notes("Notes", tuple(_notes()))


def headline(summary: Summary) -> str:
    """What was scored, in one line."""
    return (
        f"{summary.used} of {summary.used + summary.excluded} measurements compared, "
        f"{summary.configurations} configurations"
    )


def verdict(answer: Validation) -> tuple[str, str]:
    """Whether the errors keep to the tolerance, and the line's tone."""
    summary, limits = answer.summary, answer.tolerance
    if summary.median_abs_error is None or summary.p90_abs_error is None or summary.worst_abs_error is None:
        text = "no figure to compare"
    else:
        text = (
            f"absolute error: median {share(summary.median_abs_error)}, 90 % of configurations within "
            f"{share(summary.p90_abs_error)}, worst {share(summary.worst_abs_error)}"
        )
    metrics = [group.name for group in answer.groups if group.by == "metric" and group.name in limits]
    allowed = ", ".join(f"{name} {limits[name][0]:.0%} and {limits[name][1]:.0%}" for name in metrics)
    word = "within" if answer.within_tolerance else "outside"
    return f"{text} - {word} the tolerance ({allowed or 'no metric'})", "good" if answer.within_tolerance else "bad"


def _outcomes(summary: Summary) -> str:
    text = (
        f"{summary.out_of_memory} runs that ran out of memory: {summary.false_fits} predicted to fit"
        if summary.out_of_memory
        else "no run that ran out of memory"
    )
    if summary.interval_coverage is not None:
        text += f"; {summary.interval_coverage:.0%} of the measured figures lie in their interval"
    return text


def group_table(title: str, groups: Sequence[Group]) -> Table:
    """One line a group: how many, and the errors of its configurations."""
    heads = ("", "rows", "runs", "median", "size", "90 %", "worst", "inside")
    return Table(
        title,
        tuple(Column(head, right=number > 0) for number, head in enumerate(heads)),
        tuple(
            (
                group.name,
                str(group.rows),
                str(group.configurations),
                signed(group.median_error),
                share(group.median_abs_error),
                share(group.p90_abs_error),
                share(group.worst_abs_error),
                "-" if group.interval_coverage is None else f"{group.interval_coverage:.0%}",
            )
            for group in groups
        ),
        below="runs: configurations; median: signed; size: median without sign; inside: in their interval",
    )


def _worst(rows: Iterable[Score]) -> Iterator[Block]:
    """The configurations with the largest errors, one line each."""
    found: dict[tuple[str, str, str], Score] = {}
    for row in rows:
        if not row.used or row.outcome != "completed" or row.error_frac is None:
            continue
        key = (row.config_key, row.metric, row.engine)
        if key not in found or abs(row.error_frac) > abs(found[key].error_frac or 0):
            found[key] = row
    ranked = sorted(found.values(), key=lambda row: -abs(row.error_frac or 0))[:_WORST_SHOWN]
    if not ranked:
        return
    heads = ("file and row", "source", "model", "method", "metric", "predicted", "measured", "error")
    yield Table(
        "Largest errors",
        tuple(Column(head, right=number > 4) for number, head in enumerate(heads)),
        tuple(
            (
                f"{row.file} {row.row}",
                row.source.partition(" ")[0],
                row.model.rpartition("/")[2],
                row.method,
                row.metric,
                figure(row.predicted or 0, row.metric),
                figure(row.measured or 0, row.metric),
                signed(row.error_frac or 0),
            )
            for row in ranked
        ),
    )


def figure(value: float, metric: str) -> str:
    """A figure for people, in the unit of its metric."""
    if metric == "tokens_per_s":
        return f"{value:,.0f} tokens/s"
    return f"{value:.3g} s" if metric == "step_s" else format_bytes(round(value))


def _excluded(answer: Validation) -> Table:
    reasons = list(answer.excluded.items())
    rest = sum(count for _, count in reasons[_REASONS_SHOWN:])
    more = f"and {rest} rows for {len(reasons) - _REASONS_SHOWN} other reasons (--json lists them)" if rest else ""
    return Table(
        "Not compared, and why",
        (Column("rows", right=True), Column("reason")),
        tuple((str(count), reason) for reason, count in reasons[:_REASONS_SHOWN]),
        below=more,
    )


def _notes() -> Iterator[str]:
    yield "an error is predicted / measured - 1; a configuration that was measured often counts once, by its median"
    yield "rows are compared by general rules on what their columns say; every row is listed by --json and --csv"


def signed(frac: float) -> str:
    """An error for people: `+1.20 %`, `-0.04 %`."""
    return f"{frac:+.2%}"


def share(frac: float) -> str:
    """The size of an error for people."""
    return f"{frac:.2%}"


def validation_csv(answer: Validation) -> str:
    """Every row as one line, its columns named as in the JSON."""
    header = list(Score.model_fields)
    return rows_csv(header, ([getattr(row, name) for name in header] for row in answer.rows))


def readme_table(answer: Validation) -> str:
    """The README's table of memory: one line for each metric, each source of it, and what is listed apart."""
    lines = [
        "| measured by | metric | configurations | median error | size: median, 90 %, worst | in interval |",
        "|---|---|---|---|---|---|",
    ]
    counted = [row for row in answer.rows if row.used and row.outcome == "completed" and row.metric in BYTE_METRICS]
    for metric in sorted({row.metric for row in counted}):
        of_metric = [row for row in counted if row.metric == metric]
        found = [*grouped(of_metric, "", lambda row: "all"), *grouped(of_metric, "", lambda row: f"`{row.source}`")]
        lines += [_line(group, metric) for group in found]
    lines += [_line(group, "listed apart") for group in answer.apart]
    return "\n".join(lines)


def _line(group: Group, metric: str) -> str:
    inside = "-" if group.interval_coverage is None else f"{group.interval_coverage:.0%}"
    sizes = ", ".join(share(frac) for frac in (group.median_abs_error, group.p90_abs_error, group.worst_abs_error))
    return (
        f"| {group.name} | {metric} | {group.configurations} | {signed(group.median_error)} | {sizes} | {inside} |"
    )
