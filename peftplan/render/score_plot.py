"""Scores drawn: predicted against measured, and every error in a lane of its source. Text only, no library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from peftplan.measured import BYTE_METRICS
from peftplan.render.svg_parts import INK, SURFACE, caption, rule
from peftplan.render.validate import group_table, headline, share, signed, verdict
from peftplan.scores import TOLERANCES, Score, Validation
from peftplan.units import GIB, format_bytes

# Okabe and Ito's colours, told apart with any colour vision; dots of a source share one.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5c5c5c")
_FACE = "font-family=\"system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif\""
_DARK = """
@media (prefers-color-scheme: dark) {
  .surface { fill: #12161c } .ink { fill: #e6edf3 } .muted { fill: #9aa5b1 } .grid { stroke: #30363d }
  .line { stroke: #e6edf3 } .band { fill: #ffffff }
}
"""
_BAND = TOLERANCES["allocated"][1]
_WIDTH, _FONT, _PANEL, _LANE = 960, 14, 420, 34
_LEFT, _TOP = 70, 80


@dataclass(frozen=True, slots=True)
class _Dot:
    """One configuration: what was predicted, what was measured, in bytes."""

    score: Score
    predicted: float
    measured: float
    error: float
    colour: str


def scores_svg(answer: Validation) -> str:
    """A chart for a document: it stands alone and says in words what it shows."""
    dots = _dots(answer.rows)
    lanes = sorted({dot.score.source for dot in dots})
    height = _TOP + _PANEL + 60 + _LANE * max(len(lanes), 1) + 70
    words = f"{headline(answer.summary)}; {verdict(answer)[0]}"
    box = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {box}>',
        f"<title>Predicted against measured memory</title><desc>{escape(words)}</desc><style>{_DARK}</style>",
        f'<rect class="surface" width="{_WIDTH}" height="{height}" fill="{SURFACE}"/>',
        f'<g {_FACE} font-size="{_FONT}">',
        caption(headline(answer.summary), 16, 26, weight="600"),
        caption(verdict(answer)[0], 16, 48, "muted"),
    ]
    if dots:
        lines += _scatter(dots)
        lines += _lanes(dots, lanes, _TOP + _PANEL + 70)
    else:
        lines.append(caption("nothing to draw: no memory was compared", _LEFT, _TOP + 40, "muted"))
    return "\n".join([*lines, "</g>", "</svg>", ""])


def scores_html(answer: Validation) -> str:
    """A page that holds the chart and its figures, and fetches nothing from anywhere."""
    tables = []
    for title, groups in (
        ("By source", [group for group in answer.groups if group.by == "source"]),
        ("By metric", [group for group in answer.groups if group.by == "metric"]),
        ("Apart: not the stock stack, not counted", list(answer.apart)),
    ):
        if groups:
            table = group_table(title, groups)
            lines = [
                [column.name for column in table.columns],
                *([str(cell) for cell in row] for row in table.rows),
            ]
            rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
            tables.append(f"<h2>{escape(title)}</h2><div><table>{rows}</table></div>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Predicted against measured memory</title><style>{_PAGE}</style></head><body>\n"
        f"<h1>{escape(headline(answer.summary))}</h1><p>{escape(verdict(answer)[0])}</p>\n"
        f"<div>{scores_svg(answer)}</div>\n{''.join(tables)}\n</body></html>\n"
    )


_PAGE = """
:root { color-scheme: light dark }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; font: 1rem/1.45 system-ui, 'Segoe UI', Roboto, sans-serif }
div { overflow-x: auto } svg { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: .9rem }
td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8886; font-variant-numeric: tabular-nums }
tr:first-child { color: #808890 }
"""


def _dots(rows: Sequence[Score]) -> list[_Dot]:
    """One dot for every row that counts and is a size in bytes."""
    kept = [row for row in rows if row.used and row.outcome == "completed" and row.metric in BYTE_METRICS]
    sources = sorted({row.source for row in kept})
    return [
        _Dot(row, row.predicted, row.measured, row.error_frac, _COLOURS[sources.index(row.source) % len(_COLOURS)])
        for row in kept
        if row.predicted and row.measured and row.error_frac is not None
    ]


def _scatter(dots: Sequence[_Dot]) -> Iterator[str]:
    """Both axes logarithmic and alike; the line is where prediction and measurement agree."""
    sizes = [size for dot in dots for size in (dot.predicted, dot.measured)]
    low, high = math.floor(math.log2(min(sizes))), math.ceil(math.log2(max(sizes)))
    high = max(high, low + 1)

    def at(size: float) -> float:
        return (math.log2(size) - low) / (high - low) * _PANEL

    left, bottom = _LEFT, _TOP + _PANEL
    for power in range(low, high + 1):
        place = (power - low) / (high - low) * _PANEL
        yield rule(left, bottom - place, left + _PANEL, bottom - place)
        yield rule(left + place, _TOP, left + place, bottom)
        label = f"{2.0**power / GIB:g}"
        yield caption(label, left - 8, bottom - place + 5, "muted", anchor="end")
        yield caption(label, left + place, bottom + 18, "muted", anchor="middle")
    yield (
        f'<line class="line" x1="{left}" y1="{bottom}" x2="{left + _PANEL}" y2="{_TOP}" stroke="{INK}" '
        'stroke-dasharray="4 4"/>'
    )
    yield caption("measured [GiB]", left + _PANEL / 2, bottom + 38, "muted", anchor="middle")
    yield caption("predicted [GiB]", left - 8, _TOP - 10, "muted")
    for dot in dots:
        yield _circle(left + at(dot.measured), bottom - at(dot.predicted), dot)
    right = left + _PANEL + 40
    named = {dot.score.source: dot.colour for dot in dots}
    for line, (source, colour) in enumerate(sorted(named.items())):
        y = _TOP + 14 + 22 * line
        count = sum(dot.score.source == source for dot in dots)
        yield f'<circle cx="{right}" cy="{y - 5}" r="5" fill="{colour}"/>'
        yield caption(f"{source}: {count}", right + 14, y)


def _lanes(dots: Sequence[_Dot], lanes: Sequence[str], top: float) -> Iterator[str]:
    """One lane a source, its errors from left to right; the band is what nine of ten may reach."""
    widest = max(max(abs(dot.error) for dot in dots) * 1.1, _BAND * 1.5)
    left, right = _LEFT + 140, _WIDTH - 40
    middle, bottom = (left + right) / 2, top + _LANE * len(lanes)

    def at(error: float) -> float:
        return middle + error / widest * (right - left) / 2

    band_left, band_right = at(-_BAND), at(_BAND)
    yield (
        f'<rect class="band" x="{band_left:.1f}" y="{top:.1f}" width="{band_right - band_left:.1f}" '
        f'height="{bottom - top:.1f}" fill="#000000" fill-opacity="0.06"/>'
    )
    yield rule(middle, top, middle, bottom)
    for error in (-widest / 1.1, -_BAND, 0.0, _BAND, widest / 1.1):
        yield caption(signed(error), at(error), bottom + 18, "muted", anchor="middle")
    yield caption("error: predicted / measured - 1", middle, bottom + 40, "muted", anchor="middle")
    for number, source in enumerate(lanes):
        y = top + _LANE * (number + 0.5)
        yield caption(source[:24], left - 10, y + 5, anchor="end")
        for dot in dots:
            if dot.score.source == source:
                yield _circle(at(dot.error), y, dot)


def _circle(x: float, y: float, dot: _Dot) -> str:
    score = dot.score
    words = (
        f"{score.file} row {score.row}: {score.model}, {score.method}, {score.metric} ({score.engine}); "
        f"predicted {format_bytes(round(dot.predicted))}, measured {format_bytes(round(dot.measured))}, "
        f"{'over' if dot.error > 0 else 'under'} by {share(abs(dot.error))}"
    )
    place = f'cx="{x:.1f}" cy="{y:.1f}" r="4"'
    return f'<circle {place} fill="{dot.colour}" fill-opacity="0.6"><title>{escape(words)}</title></circle>'
