"""CSV files of measurements: which of the known tables a file is, and its rows, or one line on what is wrong."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from peftplan.catalog.profiles import read_measurements
from peftplan.errors import BadInput, shown

Kind = Literal["memory", "throughput", "oom"]
Row = dict[str, str]

MAX_ROWS = 10**5
MAX_FIELD = 10**5  # characters in one cell

# Columns without which a table says nothing, and those in which a number stands if anything does.
_NEEDED: dict[Kind, frozenset[str]] = {
    "memory": frozenset(
        {
            "source", "quality", "model", "gpu", "n_gpus", "method", "framework_config", "base_dtype",
            "mixed_precision", "quant_norm", "lora_rank", "target_modules", "optimizer", "micro_batch", "seq_len",
            "shape_known", "gc_norm", "attn_impl", "fused_ce", "sharding", "metric_norm", "memory_gib", "per_gpu",
            "config_key",
        }
    ),
    "oom": frozenset(
        {
            "source", "model", "gpu", "n_gpus", "method", "framework", "quantization", "micro_batch", "seq_len",
            "gradient_checkpointing", "attn_impl", "sharding", "memory_metric",
        }
    ),
    "throughput": frozenset(
        {"source", "gpu", "n_gpus", "model", "method", "micro_batch", "seq_len", "kernels", "tokens_per_s_per_gpu"}
    ),
}  # fmt: skip
_NUMBERS: dict[Kind, tuple[str, ...]] = {
    "memory": ("n_gpus", "micro_batch", "seq_len", "lora_rank", "memory_gb", "memory_gib", "tokens_per_s"),
    "oom": ("n_gpus", "micro_batch", "seq_len", "lora_rank"),
    "throughput": ("n_gpus", "micro_batch", "seq_len", "tokens_per_s_per_gpu"),
}
_FILES: dict[Kind, str] = {"memory": "memory.csv", "oom": "oom_outcomes.csv", "throughput": "throughput.csv"}


@dataclass(frozen=True, slots=True)
class Table:
    """One file's rows, in order."""

    name: str
    kind: Kind
    rows: tuple[Row, ...]


def read_table(path: Path) -> Table:
    """The rows of a file; what cannot be one is refused in one line."""
    return parse_table(read_measurements(path), str(path))


def parse_table(content: bytes, where: str) -> Table:
    """The rows of a file's content."""
    name = shown(where)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInput(f"{name} is no text in UTF-8; give a CSV file") from None
    if "\0" in text:
        raise BadInput(f"{name} holds zero bytes, which no text does; give a CSV file")
    csv.field_size_limit(MAX_FIELD)
    lines = csv.reader((line + "\n" for line in text.split("\n")), strict=True)
    try:
        header = next(lines, None)
        if not header or not any(cell.strip() for cell in header):
            raise BadInput(f"{name} is empty; give a CSV file with a header and one row for each measurement")
        kind = _kind([cell.strip() for cell in header], name)
        rows = tuple(_rows(lines, [cell.strip() for cell in header], kind, name))
    except csv.Error as error:
        raise BadInput(f"{name}, line {lines.line_num}: no CSV ({error})") from None
    if not rows:
        raise BadInput(f"{name} has a header and no rows; nothing is to be scored")
    return Table(where, kind, rows)


def _kind(header: list[str], name: str) -> Kind:
    """The table whose columns the file has; the nearest one names what is missing."""
    twice = sorted({column for column in header if column and header.count(column) > 1})
    if twice:
        raise BadInput(f"{name} has the column {shown(twice[0])} twice; every column stands once")
    missing = {kind: sorted(needed - set(header)) for kind, needed in _NEEDED.items()}
    for kind, columns in missing.items():
        if not columns:
            return kind
    nearest = min(missing, key=lambda kind: len(missing[kind]) / len(_NEEDED[kind]))
    if len(missing[nearest]) > len(_NEEDED[nearest]) / 2:
        raise BadInput(
            f"{name} has the columns of no known table; it needs those of {', '.join(_FILES.values())} "
            "(see profiles/README.md)"
        )
    named = ", ".join(missing[nearest][:5]) + (", ..." if len(missing[nearest]) > 5 else "")
    raise BadInput(f"{name} lacks columns of {_FILES[nearest]}: {named}; add them, blank where unknown")


def _rows(lines: Iterable[list[str]], header: list[str], kind: Kind, name: str) -> Iterator[Row]:
    number = 0
    for cells in lines:
        if not cells:  # a blank line
            continue
        number += 1
        if number > MAX_ROWS:
            raise BadInput(f"{name} has more than {MAX_ROWS:,} rows; split it")
        if len(cells) != len(header):
            raise BadInput(f"{name}, row {number}: {len(cells)} cells under {len(header)} columns")
        row = dict(zip(header, (cell.strip() for cell in cells)))
        for column in _NUMBERS[kind]:
            _refuse_no_number(row.get(column, ""), column, number, name)
        yield row


def _refuse_no_number(text: str, column: str, number: int, name: str) -> None:
    """A cell may be blank or hold words, which set its row aside; NaN, infinities and negatives are mistakes."""
    try:
        value = float(text) if text else 0.0
    except ValueError:
        return
    if not isfinite(value) or value < 0:
        raise BadInput(f"{name}, row {number}: {column} is {shown(text)}; give a number from 0, or leave it blank")
