"""Blocks drawn with rich: colours where the terminal has them, letters where it has not."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from peftplan.render.blocks import Block, Cell, Gauge, Notes, Split, Table, Text, cell_widths, cut_to_width
from peftplan.render.plain import GAUGE_WIDTH, note_lines, split_bar

TONES = {"title": "bold", "good": "bold green", "bad": "bold red", "warn": "bold yellow", "plain": ""}
# Colours of a bar's parts, in their order.
SHADES = (
    "blue",
    "cyan",
    "magenta",
    "bright_blue",
    "yellow",
    "white",
    "green",
    "red",
    "bright_magenta",
    "bright_cyan",
    "bright_yellow",
    "bright_black",
)
_WIDE = 72  # columns from which gauges are drawn at full length
_CELL_GAP = 3  # what rich puts between two columns of these tables


def draw(blocks: Iterable[Block], console: Console) -> None:
    """Print the blocks, an empty line between them."""
    before: Block | None = None
    for block in blocks:
        if before is not None and not (isinstance(block, Text) and isinstance(before, Text)):
            console.print()
        _draw(block, console)
        before = block


def _draw(block: Block, console: Console) -> None:
    match block:
        case Text():
            console.print(RichText(block.text, TONES[block.tone]))
        case Notes():
            title, *lines = note_lines(block, console.width)
            console.print(RichText(title, "bold"))
            for line in lines:
                console.print(RichText(line))
        case Split():
            _draw_split(block, console)
        case Table():
            for index, part in enumerate(cut_to_width(block, console.width, _CELL_GAP)):
                if index:
                    console.print()
                if part.title:
                    console.print(RichText(part.title, "bold"))
                console.print(_table(part, console))
                if part.below:
                    console.print(RichText(part.below, "dim"))


def _draw_split(block: Split, console: Console) -> None:
    console.print(RichText(block.title, "bold"))
    letters = split_bar(block, console.width)
    coloured = _is_coloured(console)
    if not coloured:
        console.print(RichText(letters))
    else:
        bar = RichText()
        for index, cells in enumerate(cell_widths(block.parts, block.end, console.width)):
            bar.append("█" * cells, _shade(index))
        bar.append("░" * (console.width - len(bar)), "dim")
        at = letters.find("|")
        if at >= 0:
            bar = RichText.assemble(bar[:at], ("│", "bold"), bar[at + 1 :])
        console.print(bar)
    legend = block.legend
    keys = {
        part.name: RichText("██", _shade(index)) if coloured else RichText(part.letter)
        for index, part in enumerate(block.parts)
    }
    console.print(_table(legend, console, keys))


def _table(table: Table, console: Console, keys: dict[str, RichText] | None = None) -> RichTable:
    drawn = RichTable(
        box=None if keys else box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        show_header=any(column.name for column in table.columns),
        header_style="dim",
    )
    if keys is not None:
        drawn.add_column("", no_wrap=True)
    for column in table.columns:
        drawn.add_column(
            RichText(column.name),
            justify="right" if column.right else "left",
            no_wrap=column.right,
            overflow="fold",
        )
    for index, row in enumerate(table.rows):
        cells = [_cell(cell, console) for cell in row]
        if keys is not None:
            cells = [keys.get(str(row[0]), RichText()), *cells]
        drawn.add_row(*cells, style="bold" if index in table.strong else None)
    return drawn


def _cell(cell: Cell, console: Console) -> RichText:
    if isinstance(cell, Gauge):
        room = GAUGE_WIDTH if console.width >= _WIDE else GAUGE_WIDTH // 2
        mark = "\u2501" if _is_unicode(console) else "#"
        return RichText(mark * max(round(cell.frac * room), 1 if cell.frac > 0 else 0), "blue")
    return RichText(cell)


def _shade(index: int) -> str:
    return SHADES[index % len(SHADES)]


def _is_coloured(console: Console) -> bool:
    return console.color_system is not None and not console.no_color and _is_unicode(console)


def _is_unicode(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")
