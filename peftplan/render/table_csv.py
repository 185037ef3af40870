"""Rows as CSV: one header, one line a row."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peftplan.report import Comparison, Report

# Parts of an answer that are lists of their own; the last four are a trace's.
_NOT_IN_A_ROW = {"notes", "recipes", "phases", "largest", "tree", "timeline"}
_PARTS_OR_NONE = ("gpu", "time", "cost")


class _Lines(list[str]):
    """What csv writes to: a list of lines."""

    write = list.append


def rows_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV; None is an empty cell."""
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return "".join(lines)


def report_csv(report: Report) -> str:
    """One estimate as one row, its columns named as in the JSON; the parts of the peak as `breakdown.*`."""
    flat = dict(_flat(report.model_dump(exclude=_NOT_IN_A_ROW)))
    for part in report.memory.breakdown.children:
        flat[f"memory.breakdown.{part.name}"] = part.bytes
    return rows_csv(list(flat), [list(flat.values())])


def comparison_csv(comparison: Comparison, names: Sequence[str]) -> str:
    """The terms of a comparison as rows, and each column's peak, which they sum to."""
    peaks = [column.memory.peak_allocated_bytes for column in comparison.columns]
    rows = [[term.name, *term.bytes] for term in comparison.terms]
    return rows_csv(["term", *names], [*rows, ["peak allocated", *peaks]])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if key == "breakdown" or (value is None and key in _PARTS_OR_NONE):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
