"""What a screen is made of, whatever it is drawn with: lines of text, tables, one split bar, notes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Gauge:
    """A cell that is a small bar: `frac` of the width it is given."""

    frac: float


Cell = str | Gauge


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column; numbers stand to the right."""

    name: str
    right: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a title. `strong`: the indices of rows that are totals; `names`: how many columns name a row."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    strong: frozenset[int] = frozenset()
    below: str = ""  # one line that explains marks in the table
    names: int = 1


@dataclass(frozen=True, slots=True)
class Text:
    """A line or paragraph. Tone: title, good, bad, warn or plain."""

    text: str
    tone: str = "plain"


@dataclass(frozen=True, slots=True)
class Part:
    """One share of a split bar, named in the legend under its letter."""

    name: str
    num_bytes: int
    letter: str


@dataclass(frozen=True, slots=True)
class Split:
    """One horizontal bar divided into parts: `end` is what its length stands for, `mark` a limit on it."""

    title: str
    parts: tuple[Part, ...]
    end: int
    legend: Table  # its first column names the parts, and totals
    mark: int | None = None


@dataclass(frozen=True, slots=True)
class Notes:
    """Remarks under a title, one paragraph each."""

    title: str
    items: tuple[str, ...]


Block = Table | Text | Split | Notes


def lettered(sizes: Iterable[tuple[str, int]]) -> tuple[Part, ...]:
    """Parts of a bar, each under a letter of its name that no part before it has."""
    taken: set[str] = set()
    parts = []
    for name, num_bytes in sizes:
        wanted = [*(c.upper() for c in name if c.isalpha()), *(chr(code) for code in range(65, 91))]
        letter = next((c for c in wanted if c not in taken), "?")
        taken.add(letter)
        parts.append(Part(name, num_bytes, letter))
    return tuple(parts)


def cell_widths(parts: tuple[Part, ...], end: int, width: int) -> list[int]:
    """How many of `width` characters each part takes of a bar that ends at `end`: rounded, without drift."""
    edges, total = [0], 0
    for part in parts:
        total += part.num_bytes
        edges.append(round(width * total / end) if end else 0)
    return [after - before for before, after in pairwise(edges)]


def cut_to_width(table: Table, width: int, gap: int = 2) -> list[Table]:
    """The table, or several with the same first columns, so that columns of numbers are never broken."""
    sizes = [_natural(table, index) for index in range(len(table.columns))]
    names = tuple(range(table.names))
    numbers = [index for index, column in enumerate(table.columns) if column.right and index not in names]
    if len(numbers) < 3 or sum(sizes) + gap * (len(sizes) - 1) <= width:
        return [table]
    named = sum(sizes[i] for i in names) + gap * (len(names) - 1)
    room = max(1, (width - named) // (max(sizes[i] for i in numbers) + gap))
    if room >= len(numbers):
        return [table]
    return [
        _with_columns(table, (*names, *numbers[start : start + room]), last=start + room >= len(numbers))
        for start in range(0, len(numbers), room)
    ]


def _with_columns(table: Table, kept: tuple[int, ...], last: bool) -> Table:
    return Table(
        table.title,
        tuple(table.columns[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in table.rows),
        table.strong,
        table.below if last else "",
        table.names,
    )


def _natural(table: Table, index: int) -> int:
    cells = [row[index] for row in table.rows]
    return max(len(table.columns[index].name), *(len(c) if isinstance(c, str) else 8 for c in cells), 0)
