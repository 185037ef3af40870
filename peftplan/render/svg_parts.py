"""Lines and words of the charts that are written as SVG by hand, in the colours that all of them share."""

from __future__ import annotations

from html import escape

INK, MUTED, GRID, SURFACE = "#1b1f24", "#57606a", "#d0d7de", "#ffffff"


def rule(x1: float, y1: float, x2: float, y2: float) -> str:
    """A thin straight line."""
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{GRID}"/>'


def caption(words: str, x: float, y: float, kind: str = "ink", anchor: str = "start", weight: str = "400") -> str:
    """Words at a place; `kind` is ink or muted."""
    colour = MUTED if kind == "muted" else INK
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )
