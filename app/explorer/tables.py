"""The blocks of a screen as parts of a page: the same texts and tables that the command line prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import streamlit as st

from peftplan.render.blocks import Block, Cell, Gauge, Notes, Split, Table, Text

_SIGNS = {"good": ":material/check_circle:", "warn": ":material/help:", "bad": ":material/cancel:"}
_STYLE = """<style>
.pp-wide { overflow-x: auto }
.pp { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; min-width: 16rem }
.pp caption { text-align: left; font-weight: 600; padding: .6rem 0 .2rem; font-size: 1rem }
.pp td, .pp th { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #8885; text-align: left;
  vertical-align: top; font-weight: 400; overflow-wrap: break-word; min-width: 3rem }
.pp thead th { opacity: .75 }
.pp .r { text-align: right; white-space: nowrap }
.pp .s td { font-weight: 600 }
.pp-gauge { display: inline-block; height: .6rem; background: #0072b2; min-width: 1px; vertical-align: middle }
.pp-wide p { font-size: .8rem; opacity: .75; margin: .3rem 0 0 }
.pp ul { margin: 0; padding-left: 1.2rem }
</style>"""


def draw(blocks: Iterable[Block]) -> None:
    """Draw blocks below one another."""
    for block in blocks:
        match block:
            case Text():
                line(block)
            case Table():
                table(block)
            case Split():
                table(_titled(block.legend, block.title))
            case Notes():
                notes(block.title, block.items)


def line(block: Text) -> None:
    """One line in its tone; a tone is a sign and words, never colour alone."""
    text = literal(block.text)
    if block.tone == "title":
        st.markdown(f"##### {text}")
    elif block.tone == "plain":
        st.markdown(text)
    else:
        show = {"good": st.success, "warn": st.warning, "bad": st.error}[block.tone]
        show(text, icon=_SIGNS[block.tone])


def literal(text: str) -> str:
    """Text as it is, for places that read Markdown."""
    for sign in ("\\", "$", "*", "_", "`", "<", "[", "~", "#", ":"):
        text = text.replace(sign, f"\\{sign}")
    return text


def table(block: Table) -> None:
    """A table that scrolls by itself where the page is narrow."""
    right = ["r" if column.right else "" for column in block.columns]
    head = "".join(_cell("th", column.name, kind) for column, kind in zip(block.columns, right))
    rows = []
    for number, row in enumerate(block.rows):
        cells = "".join(_cell("td", cell, kind) for cell, kind in zip(row, right))
        rows.append(f'<tr class="{"s" if number in block.strong else ""}">{cells}</tr>')
    caption = f"<caption>{escape(block.title)}</caption>" if block.title else ""
    below = f"<p>{escape(block.below)}</p>" if block.below else ""
    st.html(
        f'{_STYLE}<div class="pp-wide" tabindex="0"><table class="pp">{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>{below}</div>"
    )


def _cell(tag: str, cell: Cell, kind: str) -> str:
    if isinstance(cell, Gauge):
        return f'<{tag}><span class="pp-gauge" style="width: {7 * cell.frac:.2f}rem"></span></{tag}>'
    return f'<{tag} class="{kind}">{escape(cell)}</{tag}>'


def _titled(legend: Table, title: str) -> Table:
    return Table(title, legend.columns, legend.rows, legend.strong, legend.below)


def notes(title: str, items: Sequence[str]) -> None:
    """Remarks, folded away."""
    if items:
        with st.expander(f"{title} ({len(items)})"):
            st.markdown("\n".join(f"- {literal(item)}" for item in items))
