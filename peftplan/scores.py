"""Predictions against measurements: one score per figure, and what the scores come to.

A configuration that was measured often counts once: its error is the median of its rows' signed errors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1
# What the configurations of each metric must keep to for `validate` to exit with 0: the median of the absolute
# errors, and what nine of ten stay below. Allocated is derived; the others are modelled.
TOLERANCES: dict[str, tuple[float, float]] = {
    "allocated": (0.02, 0.06),
    "reserved": (0.04, 0.12),
    "device": (0.05, 0.15),
    "tokens_per_s": (0.05, 0.25),
    "step_s": (0.05, 0.25),
}
MAX_FALSE_FITS = 0


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Score(_Frozen):
    """One data row under one engine.

    A row that is not comparable says why in `reason` and has no figures. For a run that ran out of memory
    `predicted` is what it would take and `measured` what the card could give: a negative error says "fits".
    """

    file: str
    row: int
    source: str
    used: bool
    reason: str
    metric: str
    engine: str
    outcome: str  # completed | out_of_memory
    model: str
    method: str
    config_key: str
    predicted: float | None
    measured: float | None
    error_frac: float | None
    low: float | None
    high: float | None
    inside_interval: bool | None
    says_fits: bool | None  # only where it ran out of memory
    apart: str = ""  # the group in which it is listed although it does not count, and its error there
    apart_error_frac: float | None = None


class Summary(_Frozen):
    """What the rows that count come to; None without any."""

    used: int
    excluded: int
    configurations: int
    median_abs_error: float | None
    p90_abs_error: float | None
    worst_abs_error: float | None
    false_fits: int
    out_of_memory: int
    interval_coverage: float | None


class Group(_Frozen):
    """The errors of the rows that share a source, a method, a metric or an engine."""

    by: str
    name: str
    rows: int
    configurations: int
    median_error: float
    median_abs_error: float
    p90_abs_error: float
    worst_abs_error: float
    interval_coverage: float | None


class Validation(_Frozen):
    """The whole answer of `validate`."""

    schema_version: int
    within_tolerance: bool
    tolerance: dict[str, tuple[float, float]]
    summary: Summary
    groups: tuple[Group, ...]
    apart: tuple[Group, ...]
    excluded: dict[str, int]
    rows: tuple[Score, ...]


def validation(rows: Sequence[Score]) -> Validation:
    """The scores and all that follows from them."""
    counted = [row for row in rows if row.used and row.outcome == "completed"]
    ran_out = [row for row in rows if row.used and row.outcome == "out_of_memory"]
    errors = sorted(abs(error) for error in configuration_errors(counted))
    false_fits = sum(bool(row.says_fits) for row in ran_out)
    summary = Summary.model_construct(
        used=len(counted) + len(ran_out),
        excluded=sum(not row.used for row in rows),
        configurations=len(errors),
        median_abs_error=median(errors) if errors else None,
        p90_abs_error=quantile(errors, 0.9) if errors else None,
        worst_abs_error=errors[-1] if errors else None,
        false_fits=false_fits,
        out_of_memory=len(ran_out),
        interval_coverage=_coverage(counted),
    )
    within = false_fits <= MAX_FALSE_FITS and all(
        group.median_abs_error <= TOLERANCES[group.name][0] and group.p90_abs_error <= TOLERANCES[group.name][1]
        for group in grouped(counted, "metric", lambda row: row.metric)
        if group.name in TOLERANCES
    )
    reasons: dict[str, int] = defaultdict(int)
    for row in rows:
        if not row.used:
            reasons[row.reason] += 1
    return Validation.model_construct(
        schema_version=SCHEMA_VERSION,
        within_tolerance=within,
        tolerance=dict(TOLERANCES),
        summary=summary,
        groups=tuple(
            group
            for by in ("engine", "metric", "method", "source")
            for group in grouped(counted, by, lambda row, by=by: str(getattr(row, by)).split(" ")[0])  # type: ignore[misc]
        ),
        apart=tuple(grouped(_apart(rows), "apart", lambda row: row.apart)),
        excluded=dict(sorted(reasons.items(), key=lambda item: -item[1])),
        rows=tuple(rows),
    )


def _apart(rows: Iterable[Score]) -> list[Score]:
    """The rows that are listed apart, with the errors they have there."""
    return [
        row.model_copy(update={"error_frac": row.apart_error_frac})
        for row in rows
        if row.apart and row.apart_error_frac is not None
    ]


def configuration_errors(rows: Iterable[Score]) -> list[float]:
    """The median signed error of each configuration, metric and engine."""
    found: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in rows:
        assert row.error_frac is not None
        found[row.config_key, row.metric, row.engine].append(row.error_frac)
    return [median(errors) for errors in found.values()]


def grouped(rows: Iterable[Score], by: str, key: Callable[[Score], str]) -> list[Group]:
    """The errors of each group, in the order of their names."""
    groups: dict[str, list[Score]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    answer = []
    for name, members in sorted(groups.items()):
        errors = configuration_errors(members)
        sizes = sorted(map(abs, errors))
        answer.append(
            Group.model_construct(
                by=by,
                name=name,
                rows=len(members),
                configurations=len(errors),
                median_error=median(errors),
                median_abs_error=median(sizes),
                p90_abs_error=quantile(sizes, 0.9),
                worst_abs_error=sizes[-1],
                interval_coverage=_coverage(members),
            )
        )
    return answer


def quantile(ordered: Sequence[float], frac: float) -> float:
    """The value below which `frac` of the ordered values lie, between two of them by proportion."""
    place = frac * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _coverage(rows: Iterable[Score]) -> float | None:
    """The share of the rows that lie in their interval, every configuration counted once."""
    found: dict[tuple[str, ...], list[bool]] = defaultdict(list)
    for row in rows:
        if row.inside_interval is not None:
            found[row.config_key, row.metric, row.engine].append(row.inside_interval)
    shares = [sum(inside) / len(inside) for inside in found.values()]
    return sum(shares) / len(shares) if shares else None
