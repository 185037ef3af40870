"""Lengths from a Parquet file, by pyarrow where it is installed: only the columns that are needed are read."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from peftplan.catalog.datasets_rows import ID_COLUMNS, LENGTH_COLUMNS, TEXT_COLUMNS, Counter
from peftplan.errors import BadInput, MachineLacks, shown

_ROWS = 2048  # held at once


def read_parquet(path: Path, counter: Counter, progress: Callable[[float, str], None] | None) -> None:
    """Count the examples of a file; MachineLacks without pyarrow."""
    where = f"--data {shown(str(path))}"
    try:
        parquet: Any = import_module("pyarrow.parquet")
        arrow: Any = import_module("pyarrow")
    except ImportError:
        raise MachineLacks(f"{where} is Parquet, and pyarrow is not installed; pip install pyarrow") from None
    try:
        with parquet.ParquetFile(path) as file:
            _count(file, counter, progress, where)
    except arrow.ArrowException as error:
        raise BadInput(f"{where} is no Parquet that can be read ({shown(str(error), 80)}); give another") from None


def _count(file: Any, counter: Counter, progress: Callable[[float, str], None] | None, where: str) -> None:
    names = list(file.schema_arrow.names)
    columns = _columns(names)
    if not columns:
        raise BadInput(
            f"{where} has no column of text, such as text or messages; it has {shown(', '.join(names), 80)}"
        )
    total, done = max(1, file.metadata.num_rows), 0
    for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
        for row in batch.to_pylist():
            counter.line += 1
            counter.example(row)
        done += batch.num_rows
        if progress is not None:
            progress(done / total, f"{done:,} rows")


def _columns(names: list[str]) -> list[str]:
    """The columns to read: token ids, else lengths, else texts."""
    lower = {name.lower(): name for name in names}
    for known in (ID_COLUMNS, LENGTH_COLUMNS):
        found = [lower[name] for name in known if name in lower]
        if found:
            return found[:1]
    return [name for name in names if name.lower() in TEXT_COLUMNS]
