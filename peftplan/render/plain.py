"""Blocks as plain text: no colour, no boxes, letters instead of shades; also what `--plain` prints."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import wrap

from peftplan.render.blocks import Block, Cell, Gauge, Notes, Split, Table, Text, cell_widths, cut_to_width

GAP = 2
GAUGE_WIDTH = 24
_NARROWEST = 8  # no column of words is squeezed below this


def plain(blocks: Iterable[Block], width: int) -> str:
    """The blocks as text of at most `width` columns where words allow it."""
    text, before = "", None
    for block in blocks:
        if before is not None:
            text += "\n" if isinstance(block, Text) and isinstance(before, Text) else "\n\n"
        text += "\n".join(_lines(block, width))
        before = block
    return text + "\n"


def _lines(block: Block, width: int) -> list[str]:
    match block:
        case Text():
            return wrap(block.text, width) or [""]
        case Notes():
            return note_lines(block, width)
        case Split():
            return [
                *wrap(block.title, width),
                split_bar(block, width),
                *_table(_with_letters(block), width),
            ]
        case Table():
            parts = cut_to_width(block, width, GAP)
            return [line for part in parts for line in [*_table(part, width), ""]][:-1]


def note_lines(notes: Notes, width: int) -> list[str]:
    """The title, and every item behind a dash."""
    items = [wrap(item, width, initial_indent="- ", subsequent_indent="  ") for item in notes.items]
    return [notes.title, *(line for lines in items for line in lines)]


def split_bar(block: Split, width: int) -> str:
    """The bar in letters, dots where it is empty, `|` at the limit."""
    bar = "".join(
        part.letter * cells for part, cells in zip(block.parts, cell_widths(block.parts, block.end, width))
    ).ljust(width, ".")
    if block.mark is None or block.mark >= block.end:
        return bar
    at = min(width - 1, round(width * block.mark / block.end))
    return bar[:at] + "|" + bar[at + 1 :]


def _with_letters(block: Split) -> Table:
    letters = {part.name: part.letter for part in block.parts}
    rows = tuple((f"{letters.get(str(row[0]), ' ')} {row[0]}", *row[1:]) for row in block.legend.rows)
    return Table("", block.legend.columns, rows, block.legend.strong, block.legend.below)


def _table(table: Table, width: int) -> list[str]:
    widths = _column_widths(table, width)
    lines = wrap(table.title, width) if table.title else []
    if any(column.name for column in table.columns):
        lines += _row(tuple(column.name for column in table.columns), table, widths)
    for index, row in enumerate(table.rows):
        if index in table.strong and index:
            lines.append("-" * (sum(widths) + GAP * (len(widths) - 1)))
        lines += _row(row, table, widths)
    if table.below:
        lines += wrap(table.below, width)
    return lines


def _row(row: tuple[Cell, ...], table: Table, widths: list[int]) -> list[str]:
    cells = [
        [str(cell)] if column.right else _cell(cell, size) for cell, size, column in zip(row, widths, table.columns)
    ]
    lines = []
    for i in range(max(len(cell) for cell in cells)):
        texts = [
            (cell[i] if i < len(cell) else "").rjust(size)
            if column.right
            else (cell[i] if i < len(cell) else "").ljust(size)
            for cell, size, column in zip(cells, widths, table.columns)
        ]
        lines.append((" " * GAP).join(texts).rstrip())
    return lines


def _cell(cell: Cell, size: int) -> list[str]:
    if isinstance(cell, Gauge):
        return ["#" * max(round(cell.frac * size), 1 if cell.frac > 0 else 0)]
    return wrap(cell, max(size, 1)) or [""]


def _column_widths(table: Table, width: int) -> list[int]:
    """Natural widths; when they are too many, the widest column of words gives way."""
    widths = []
    for index, column in enumerate(table.columns):
        cells = [row[index] for row in table.rows]
        if any(isinstance(cell, Gauge) for cell in cells):
            widths.append(GAUGE_WIDTH)
        else:
            widths.append(max([len(column.name), *(len(str(cell)) for cell in cells)]))
    words = [index for index, column in enumerate(table.columns) if not column.right]
    room = width - GAP * (len(widths) - 1)
    while words and sum(widths) > room:
        widest = max(words, key=lambda index: widths[index])
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
    return widths
