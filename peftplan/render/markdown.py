"""Blocks as Markdown: headings, pipe tables, lists."""

from __future__ import annotations

from collections.abc import Iterable

from peftplan.render.blocks import Block, Cell, Gauge, Notes, Split, Table, Text


def markdown(blocks: Iterable[Block]) -> str:
    """The blocks as a Markdown document."""
    return "\n\n".join("\n".join(_lines(block)) for block in blocks) + "\n"


def _lines(block: Block) -> list[str]:
    match block:
        case Text():
            text = _escaped(block.text)
            if block.tone == "title":
                return [f"## {text}"]
            return [text if block.tone == "plain" else f"**{text}**"]
        case Notes():
            return [f"### {_escaped(block.title)}", "", *(f"- {_escaped(item)}" for item in block.items)]
        case Split():
            return [f"### {_escaped(block.title)}", "", *_table(block.legend)]
        case Table():
            heading = [f"### {_escaped(block.title)}", ""] if block.title else []
            below = ["", _escaped(block.below)] if block.below else []
            return [*heading, *_table(block), *below]


def _table(table: Table) -> list[str]:
    lines = [
        "| " + " | ".join(_escaped(column.name) for column in table.columns) + " |",
        "|" + "|".join("---:" if column.right else "---" for column in table.columns) + "|",
    ]
    for index, row in enumerate(table.rows):
        cells = [_cell(cell) for cell in row]
        if index in table.strong:
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(cell: Cell) -> str:
    return f"{cell.frac:.0%}" if isinstance(cell, Gauge) else _escaped(cell)


def _escaped(text: str) -> str:
    for sign in ("\\", "|", "*", "_", "`", "<", "["):
        text = text.replace(sign, f"\\{sign}")
    return text
