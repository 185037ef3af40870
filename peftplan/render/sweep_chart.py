"""A sweep drawn: memory, time and cost over one varied field, a line for each combination of the others.

Text only, no library; a PNG is made from it by the extra `charts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from importlib import import_module
from typing import Any, NamedTuple

from peftplan.render.svg_parts import INK, SURFACE, caption, rule
from peftplan.render.sweep import field_value, headline, points_table, varied
from peftplan.render.timeline import require_png
from peftplan.sweeps import SweepReport, SweepRow
from peftplan.units import GIB

# Okabe and Ito's colours, told apart with any colour vision; further lines are dashed.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5c5c5c")
_DASHES = ("", "6 4", "2 3")
_FACE = "font-family=\"system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif\""
_DARK = """
@media (prefers-color-scheme: dark) {
  .surface { fill: #12161c } .ink { fill: #e6edf3 } .muted { fill: #9aa5b1 } .grid { stroke: #30363d }
  .limit { stroke: #e6edf3 }
}
"""
_WIDTH, _FONT, _HEIGHT, _LEFT, _RIGHT, _TOP, _GAP = 960, 14, 250, 80, 660, 100, 80
_LINES_NAMED = 21  # in the legend: as many as there are colours and dashes
_MARKED_AT_MOST = 24  # values on the axis up to which every point has a dot
_LABELS_AT_MOST = 8
_WIDE_RATIO = 16  # from which an axis of numbers is logarithmic
_FARTHEST_LIMIT = 3  # times the largest figure: a limit above it is not drawn


class _Panel(NamedTuple):
    title: str
    part: str
    figure: Callable[[Any], float]

    def value(self, row: SweepRow) -> float | None:
        part = getattr(row, self.part)
        return None if part is None else self.figure(part)


class _Line(NamedTuple):
    name: str
    rows: list[tuple[float, SweepRow]]
    colour: str
    dash: str


PANELS = (
    _Panel("device memory [GiB]", "memory", lambda memory: memory.device_bytes / GIB),
    _Panel("a step [s]", "time", lambda time: time.step_s),
    _Panel("the run [US$]", "cost", lambda cost: cost.usd),
)


class _Axis:
    """Where the values of the field along the axis lie, from 0 to 1."""

    def __init__(self, name: str, values: Sequence[Any]) -> None:
        self.name = name
        self.values = list(values)
        self.numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        if self.numbers:
            self.low, self.high = float(min(values)), float(max(values))
            self.logarithmic = self.low > 0 and self.high / self.low >= _WIDE_RATIO

    def at(self, value: Any) -> float:
        if not self.numbers:
            return (self.values.index(value) + 0.5) / len(self.values)
        if self.low == self.high:
            return 0.5
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)  # type: ignore[no-any-return]

    def labels(self) -> list[Any]:
        """Values to write below it: all, or some that keep a distance."""
        if not self.numbers or len(self.values) <= _LABELS_AT_MOST:
            return self.values
        kept: list[Any] = []
        for value in sorted(self.values):
            if not kept or self.at(value) - self.at(kept[-1]) >= 1 / _LABELS_AT_MOST:
                kept.append(value)
        return kept


def sweep_svg(report: SweepReport) -> str:
    """A chart for a document: it stands alone and says in words what it shows."""
    axis = _axis(report)
    lines = _lines(report, axis)
    panels = [panel for panel in PANELS if any(panel.value(row) is not None for row in report.rows)]
    height = _TOP + max(len(panels), 1) * (_HEIGHT + _GAP) + 10
    box = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {box}>',
        f"<title>{escape(headline(report))}</title><desc>{escape(_words(report, axis, panels))}</desc>",
        f"<style>{_DARK}</style>",
        f'<rect class="surface" width="{_WIDTH}" height="{height}" fill="{SURFACE}"/>',
        f'<g {_FACE} font-size="{_FONT}">',
        caption(headline(report), 16, 28, weight="600"),
        caption(_cut(varied(report), 120), 16, 50, "muted"),
    ]
    if not panels:
        drawn.append(caption("nothing to draw: every point was refused", _LEFT, _TOP + 40, "muted"))
    for number, panel in enumerate(panels):
        drawn += _panel(report, panel, axis, lines, _TOP + number * (_HEIGHT + _GAP))
    drawn += _legend(lines) if panels else []
    return "\n".join([*drawn, "</g>", "</svg>", ""])


def sweep_png(report: SweepReport, scale: float = 2.0) -> bytes:
    """The chart as PNG, `scale` pixels for each of the drawing's; needs the extra `charts`."""
    require_png()
    converter: Any = import_module("vl_convert")
    picture: bytes = converter.svg_to_png(sweep_svg(report).replace(_DARK, ""), scale=scale)
    return picture


def sweep_html(report: SweepReport) -> str:
    """A page that holds the chart and every point, and fetches nothing from anywhere."""
    table = points_table(report)
    head = "".join(f"<th>{escape(column.name)}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in table.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(headline(report))}</title><style>{_PAGE}</style></head><body>\n"
        f"<h1>{escape(headline(report))}</h1><p>{escape(varied(report))}</p>\n<div>{sweep_svg(report)}</div>\n"
        f"<div><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n<ul>{notes}</ul>\n"
        "</body></html>\n"
    )


_PAGE = """
:root { color-scheme: light dark }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; font: 1rem/1.45 system-ui, 'Segoe UI', Roboto, sans-serif }
div { overflow-x: auto } svg { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8886; text-align: left }
td { font-variant-numeric: tabular-nums }
"""


def _axis(report: SweepReport) -> _Axis:
    """The numbers with the most values; without numbers, the field with the most."""
    axes = [_Axis(name, values) for name, values in report.over.items()]
    return max(axes, key=lambda axis: (axis.numbers and len(axis.values) > 1, len(axis.values)))


def _lines(report: SweepReport, axis: _Axis) -> list[_Line]:
    """One for each combination of the other fields, its points from left to right."""
    found: dict[str, list[tuple[float, SweepRow]]] = {}
    for row in report.rows:
        others = [f"{name} {field_value(value)}" for name, value in row.point.items() if name != axis.name]
        found.setdefault(", ".join(others), []).append((axis.at(row.point[axis.name]), row))
    many = len(_COLOURS)
    return [
        _Line(
            name,
            sorted(rows, key=lambda placed: placed[0]),
            _COLOURS[number % many],
            _DASHES[number // many % len(_DASHES)],
        )
        for number, (name, rows) in enumerate(found.items())
    ]


def _words(report: SweepReport, axis: _Axis, panels: Sequence[_Panel]) -> str:
    shown = ", ".join(panel.title for panel in panels) or "nothing"
    return f"{headline(report)}: {shown} over {axis.name}; {varied(report)}"


def _panel(report: SweepReport, panel: _Panel, axis: _Axis, lines: Sequence[_Line], top: float) -> Iterator[str]:
    values = [value for row in report.rows if (value := panel.value(row)) is not None]
    limit = _capacity(report) if panel is PANELS[0] else None
    if limit is not None and limit > _FARTHEST_LIMIT * max(values):
        limit = None
    step, most = _steps(max([*values, limit or 0.0]))
    bottom, width = top + _HEIGHT, _RIGHT - _LEFT

    def y(value: float) -> float:
        return bottom - value / most * _HEIGHT

    yield caption(panel.title, _LEFT, top - 12, "muted")
    for number in range(round(most / step) + 1):
        value = number * step
        yield rule(_LEFT, y(value), _RIGHT, y(value))
        yield caption(f"{value:,.10g}", _LEFT - 8, y(value) + 5, "muted", "end")
    for label in axis.labels():
        x = _LEFT + axis.at(label) * width
        yield caption(_cut(field_value(label), 18), x, bottom + 20, "muted", "middle")
    yield caption(axis.name, (_LEFT + _RIGHT) / 2, bottom + 42, "muted", "middle")
    if limit is not None:
        yield (
            f'<line class="limit" x1="{_LEFT}" y1="{y(limit):.1f}" x2="{_RIGHT}" y2="{y(limit):.1f}" '
            f'stroke="{INK}" stroke-dasharray="5 4"><title>usable memory of the GPU</title></line>'
        )
        yield caption("usable", _RIGHT + 6, y(limit) + 5, "muted")
    for line in lines:
        yield from _drawn(line, panel, axis, y)


def _drawn(line: _Line, panel: _Panel, axis: _Axis, y: Callable[[float], float]) -> Iterator[str]:
    places = [
        (_LEFT + at * (_RIGHT - _LEFT), y(value), value, row)
        for at, row in line.rows
        if (value := panel.value(row)) is not None
    ]
    if axis.numbers and len(places) > 1:
        path = " ".join(f"{x:.1f},{height:.1f}" for x, height, _, _ in places)
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        yield f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>'
    if axis.numbers and len(axis.values) > _MARKED_AT_MOST:
        return
    for x, height, value, row in places:
        words = ", ".join(f"{name} {field_value(given)}" for name, given in row.point.items())
        yield (
            f'<circle cx="{x:.1f}" cy="{height:.1f}" r="4" fill="{line.colour}">'
            f"<title>{escape(words)}: {value:,.4g} ({escape(panel.title)})</title></circle>"
        )


def _legend(lines: Sequence[_Line]) -> Iterator[str]:
    if len(lines) == 1 and not lines[0].name:
        return
    for number, line in enumerate(lines[:_LINES_NAMED]):
        y = _TOP + 20 + 22 * number
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        x = _RIGHT + 60
        ends = f'x1="{x}" y1="{y - 5}" x2="{x + 24}" y2="{y - 5}"'
        yield f'<line {ends} stroke="{line.colour}" stroke-width="3"{dash}/>'
        yield caption(_cut(line.name, 28), x + 32, y)
    if len(lines) > _LINES_NAMED:
        yield caption(f"and {len(lines) - _LINES_NAMED} more", _RIGHT + 60, _TOP + 20 + 22 * _LINES_NAMED, "muted")


def _capacity(report: SweepReport) -> float | None:
    """Usable GiB, where all points are of one card."""
    sizes = {row.gpu.usable_bytes for row in report.rows if row.gpu is not None}
    return sizes.pop() / GIB if len(sizes) == 1 else None


def _steps(most: float) -> tuple[float, float]:
    """A round distance between lines, and where the axis ends: about five lines."""
    if most <= 0:
        return 1.0, 1.0
    raw = most / 5
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw)
    return step, step * math.ceil(most / step)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
