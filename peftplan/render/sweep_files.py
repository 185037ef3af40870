"""A sweep as the content of a file: Parquet, CSV, JSON or Markdown, as the file's name ends."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftplan.errors import BadInput, MachineLacks
from peftplan.render.markdown import markdown
from peftplan.render.sweep import flat_rows, sweep_blocks, sweep_csv
from peftplan.sweeps import SweepReport

ENDS = (".parquet", ".csv", ".json", ".md")


def check_end(path: Path, option: str) -> None:
    """Refuse a name that no format goes with, and Parquet where its libraries are missing."""
    end = path.suffix.lower()
    if end not in ENDS:
        known = f"{', '.join(ENDS[:-1])} or {ENDS[-1]}"
        raise BadInput(f"{option} {str(path)!r}: the name's end says what is written; it must be {known}")
    missing = [name for name in ("pandas", "pyarrow") if find_spec(name) is None]
    if end == ".parquet" and missing:
        raise MachineLacks(
            f"{option}: Parquet needs {' and '.join(missing)}, not installed here: pip install pandas pyarrow, "
            "or write .csv or .json, which need nothing"
        )


def content(report: SweepReport, path: Path) -> bytes:
    """What the file holds: every point."""
    end = path.suffix.lower()
    if end == ".parquet":
        return parquet(report)
    if end == ".csv":
        return sweep_csv(report).encode()
    if end == ".json":
        return (report.model_dump_json() + "\n").encode()
    return markdown(sweep_blocks(report)).encode()


def parquet(report: SweepReport) -> bytes:
    """A table of the columns of the CSV."""
    header, rows = flat_rows(report)
    pandas: Any = import_module("pandas")
    frame = pandas.DataFrame({name: _column(pandas, [row[i] for row in rows]) for i, name in enumerate(header)})
    written: bytes = frame.to_parquet(None, index=False)
    return written


def _column(pandas: Any, values: list[Any]) -> Any:
    """Whole numbers stay whole where some points have none; values of several types become text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int}:
        return pandas.array(values, dtype="Int64")
    if kinds == {bool}:
        return pandas.array(values, dtype="boolean")
    if kinds <= {int, float}:
        return pandas.array([None if value is None else float(value) for value in values], dtype="Float64")
    return pandas.array([None if value is None else str(value) for value in values], dtype="string")
