"""A traced run as a picture: a page to explore, an SVG for documents, a PNG for everything else.

The page stands alone: no network, no library, light or dark as its reader prefers, with a chart for wide
windows and one for phones. Nothing here writes files: texts and bytes are handed back.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from html import escape
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from peftplan.errors import MachineLacks
from peftplan.measure.trace.analysis import Storage, Timeline
from peftplan.render.timeline_layout import NARROW, WIDE, Box, Layout, grouped
from peftplan.render.timeline_page import POLICY, SCRIPT, STYLE
from peftplan.render.timeline_svg import DARK, description, draw, peak_phase, timeline_svg
from peftplan.units import GIB, KIB, MIB, format_bytes

__all__ = ["timeline_html", "timeline_png", "timeline_svg"]

_IN_TIP = 5  # largest tensors named where the pointer meets the peak
# As format_bytes: unit, from which share of it on it is used, digits.
_UNITS = ((GIB, 0.1, 2), (MIB, 0.1, 2), (KIB, 1, 1))
_UNIT_NAMES = {GIB: "GiB", MIB: "MiB", KIB: "KiB"}

Row = tuple[str, ...]


def timeline_png(timeline: Timeline, title: str = "", box: Box = WIDE, scale: float = 2.0) -> bytes:
    """The chart as PNG, `scale` pixels for each of the box's; needs the extra `charts`."""
    require_png()
    converter: Any = import_module("vl_convert")
    picture: bytes = converter.svg_to_png(timeline_svg(timeline, title, box, adaptive=False), scale=scale)
    return picture


def require_png() -> None:
    """Refuse where the library that draws PNGs is missing."""
    if find_spec("vl_convert") is None:
        raise MachineLacks(
            "a PNG needs vl-convert-python, which is not installed: pip install 'peftplan[charts]', "
            "or write .svg or .html, which need nothing"
        )


def timeline_html(
    timeline: Timeline, title: str, largest: Sequence[Storage] = (), facts: Iterable[tuple[str, str]] = ()
) -> str:
    """A page of its own: the chart to explore, and in tables the peak, the phases and the largest tensors.

    `largest` are storages alive at the peak; `facts` further figures for the line below the heading.
    """
    charts, shapes = [], {}
    for name, box in (("wide", WIDE), ("narrow", NARROW)):
        drawn, layout = draw(timeline, "", box)
        charts.append(_chart(name, drawn, layout, description(timeline)))
        shapes[name] = _shape(layout)
    peak = f"Peak {format_bytes(timeline.peak.total_bytes)} allocated, in {peak_phase(timeline)}."
    said = " ".join([peak, *(f"{escape(name)}: {escape(value)}." for name, value in facts)])
    tables = [_table("At the peak", ("what", "bytes"), _peak_rows(timeline))]
    if largest:
        columns = ("tensor", "module", "made in", "bytes")
        tables.append(_table("Largest tensors at the peak", columns, [_storage_row(one) for one in largest]))
    tables.append(_table("Most allocated in each phase", ("phase", "bytes"), _phase_rows(timeline)))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}{DARK}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{said}</p>
<p class="soft">Point at the chart, or move along it with the arrow keys; Enter goes to the peak.</p>
<figure>
{"".join(charts)}<div class="tip" role="status" hidden></div>
</figure>
{"".join(tables)}<script type="application/json" id="data">{_data(timeline, largest, shapes)}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _chart(name: str, drawn: str, layout: Layout, words: str) -> str:
    box = layout.box
    cursor = (
        f'<line class="cursor line" x1="0" x2="0" y1="{layout.top:.1f}" y2="{layout.bottom:.1f}" '
        'stroke="#1b1f24" stroke-dasharray="4 3" visibility="hidden"/>'
    )
    return (
        f'<svg class="{name}" data-shape="{name}" viewBox="0 0 {box.width} {box.height}" '
        f'role="img" tabindex="0" aria-label="{escape(words)}">\n{drawn}\n{cursor}\n</svg>\n'
    )


def _shape(layout: Layout) -> dict[str, Any]:
    """What the script must know to find a point under the pointer."""
    edges = {name: round(getattr(layout, name), 1) for name in ("left", "right", "top", "bottom")}
    return {"xs": [round(x, 1) for x in layout.xs], "width": layout.box.width, **edges}


def _data(timeline: Timeline, largest: Sequence[Storage], shapes: dict[str, Any]) -> str:
    """What the script reads, as JSON that cannot end its own element."""
    groups = grouped(timeline)
    ends = [phase.end for phase in timeline.phases]
    last = len(ends) - 1
    content = {
        "events": [point.event for point in timeline.points],
        "totals": [point.total_bytes for point in timeline.points],
        "groups": [(group.name, group.colour) for group, _ in groups],
        "series": [series for _, series in groups],
        "phases": [phase.title for phase in timeline.phases],
        "phaseOf": [min(bisect_left(ends, point.event), last) for point in timeline.points],
        "peak": timeline.points.index(timeline.peak),
        "largest": [", ".join(filter(None, _storage_row(one))) for one in largest[:_IN_TIP]],
        "shapes": shapes,
        "units": _UNITS,
        "names": _UNIT_NAMES,
    }
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _peak_rows(timeline: Timeline) -> list[Row]:
    at_peak = timeline.points.index(timeline.peak)
    rows = [(group.name, format_bytes(series[at_peak])) for group, series in grouped(timeline)]
    return [*(row for row in rows if row[1] != format_bytes(0)), ("all", format_bytes(timeline.peak.total_bytes))]


def _phase_rows(timeline: Timeline) -> list[Row]:
    return [(phase.title, format_bytes(phase.peak.num_bytes)) for phase in timeline.phases]


def _storage_row(one: Storage) -> Row:
    shape = " × ".join(str(n) for n in one.shape)
    what = f"{one.category}: {one.operation}, {shape} {one.dtype}".rstrip(", ")
    made = "loading" if one.phase == "loaded" else f"step {one.step + 1}, {one.phase.replace('_', ' ')}"
    return what, one.module, made, format_bytes(one.num_bytes)


def _table(title: str, columns: Sequence[str], rows: Iterable[Row]) -> str:
    """A heading and a table; the last column holds numbers."""
    last = len(columns) - 1
    head = "".join(f'<th scope="col"{_number(i == last)}>{escape(c)}</th>' for i, c in enumerate(columns))
    body = "".join(
        "<tr>"
        + "".join(f"<td{_number(i == last) or _path(i)}>{escape(cell)}</td>" for i, cell in enumerate(row))
        + "</tr>\n"
        for row in rows
    )
    return f'<h2>{escape(title)}</h2>\n<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>\n'


def _number(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _path(column: int) -> str:
    return ' class="path"' if column < 2 else ""
