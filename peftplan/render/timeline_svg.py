"""A timeline chart as SVG: stacked areas by category, phases marked, the peak named. Text only, no library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from peftplan.measure.trace.analysis import Timeline, phase_at
from peftplan.render.timeline_layout import WIDE, Box, Group, Layout, Point, grouped, lay_out, text_width
from peftplan.units import format_bytes

_FACE = "font-family=\"system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif\""
SURFACE, INK, MUTED, GRID = "#ffffff", "#1b1f24", "#57606a", "#d0d7de"
# What changes where the reader prefers dark; areas keep their colours.
DARK = """
@media (prefers-color-scheme: dark) {
  .surface { fill: #12161c } .ink { fill: #e6edf3 } .muted { fill: #9aa5b1 } .halo { stroke: #12161c }
  .grid { stroke: #30363d } .line { stroke: #e6edf3 } .edge { stroke: #12161c } .band { fill: #ffffff }
}
"""


def timeline_svg(timeline: Timeline, title: str = "", box: Box = WIDE, adaptive: bool = True) -> str:
    """A chart for a document: it stands alone, says in words what it shows, and turns dark with its reader.

    Not `adaptive`, it is always dark on light, for programs that know no style sheets.
    """
    style = f"<style>{DARK}</style>" if adaptive else ""
    words = (
        f"<title>{escape(title or 'Allocated memory over a traced run')}</title>"
        f"<desc>{escape(description(timeline))}</desc>"
    )
    size = f'viewBox="0 0 {box.width} {box.height}" width="{box.width}" height="{box.height}"'
    drawn, _ = draw(timeline, title, box)
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>{words}{style}\n{drawn}\n</svg>\n'


def description(timeline: Timeline) -> str:
    """The chart in words: the peak, where it is, and what it is made of."""
    at_peak = timeline.points.index(timeline.peak)
    parts = [f"{group.name} {format_bytes(series[at_peak])}" for group, series in grouped(timeline)]
    return (
        f"Allocated GPU memory over {timeline.points[-1].event:,} allocations and frees, stacked by category. "
        f"The peak is {format_bytes(timeline.peak.total_bytes)}, in {peak_phase(timeline)}: {', '.join(parts)}."
    )


def peak_phase(timeline: Timeline) -> str:
    """The phase that the peak falls in, as people say it."""
    return phase_at(timeline.phases, timeline.peak.event).title


def draw(timeline: Timeline, title: str, box: Box) -> tuple[str, Layout]:
    """What stands inside the `svg` element, and the geometry that it follows."""
    font = box.font
    heading = _wrapped(title, box.width - 2 * font, font * 1.15)
    above = font * 0.6 + len(heading) * font * 1.5
    legend = _legend(timeline, box)
    layout = lay_out(timeline, box, above, below=font * 3.9 + max((place.y for place, _, _ in legend), default=0))
    lines = [f'<rect class="surface" width="{box.width}" height="{box.height}" fill="{SURFACE}"/>']
    lines.append(f'<g {_FACE} font-size="{font:g}">')
    for i, line in enumerate(heading):
        place = Point(font * 0.6, font * 1.5 * (i + 1))
        lines.append(_text(line, place, extra=f'font-weight="600" font-size="{font * 1.15:g}"'))
    lines += _phases(layout)
    lines += _axis(layout)
    lines += _areas(layout)
    lines += _peak(layout, timeline)
    lines += _key(layout, legend)
    lines.append("</g>")
    return "\n".join(lines), layout


def _phases(layout: Layout) -> Iterator[str]:
    """Stripes behind the areas, the names of phases above them, and above these the steps."""
    font, top = layout.box.font, layout.top
    height = layout.bottom - top + 1.6 * font
    for i, band in enumerate(layout.bands):
        shade = 0.05 if i % 2 else 0.0
        yield (
            f'<rect class="band" x="{band.left:.1f}" y="{top - 1.6 * font:.1f}" '
            f'width="{band.right - band.left:.1f}" height="{height:.1f}" fill="#000000" fill-opacity="{shade:g}"/>'
        )
        yield _rule(Point(band.left, top - 1.6 * font), Point(band.left, layout.bottom), "grid", GRID)
        middle = Point((band.left + band.right) / 2, top - 0.5 * font)
        yield _text(band.name, middle, "muted", 'text-anchor="middle"')
    yield _rule(Point(layout.right, top - 1.6 * font), Point(layout.right, layout.bottom), "grid", GRID)
    steps = dict.fromkeys(band.phase.step for band in layout.bands if band.phase.name != "loaded")
    for step in steps:
        of_step = [b for b in layout.bands if b.phase.step == step and b.phase.name != "loaded"]
        left, right = of_step[0].left, of_step[-1].right
        y = top - 1.6 * font
        yield _rule(Point(left + 1, y), Point(right - 1, y), "line", INK)
        middle = Point((left + right) / 2, y - 0.45 * font)
        yield _text(f"step {step + 1}", middle, extra='text-anchor="middle" font-weight="600"')


def _axis(layout: Layout) -> Iterator[str]:
    font, left, right = layout.box.font, layout.left, layout.right
    for y, text in layout.ticks:
        yield _rule(Point(left, y), Point(right, y), "grid", GRID)
        yield _text(text, Point(left - 0.4 * font, y + 0.35 * font), "muted", 'text-anchor="end"')
    yield _text("GiB", Point(left - 0.4 * font, layout.top - 0.5 * font), "muted", 'text-anchor="end"')
    caption = "allocations and frees, in order; each phase has room for its name"
    if text_width(caption, font) > right - left:
        caption = "allocations and frees, in order"
    middle = Point((left + right) / 2, layout.bottom + 1.4 * font)
    yield _text(caption, middle, "muted", f'text-anchor="middle" font-size="{font * 0.9:g}"')


def _areas(layout: Layout) -> Iterator[str]:
    for area in layout.areas:
        outline = _line((*area.upper, *reversed(area.lower)))
        yield f'<polygon points="{outline}" fill="{area.group.colour}"/>'
    for parting in (parting for area in layout.areas[1:] for parting in area.partings):
        line = f'points="{_line(parting)}" fill="none" stroke="{SURFACE}" stroke-width="0.8"'
        yield f'<polyline class="edge" {line}/>'
    for area in layout.areas:
        if area.label is not None:
            x, y = area.label
            place = f'x="{x:.1f}" y="{y + 0.35 * layout.box.font:.1f}" text-anchor="middle"'
            yield f'<text {place} fill="{area.group.ink}">{escape(area.group.name)}</text>'


def _peak(layout: Layout, timeline: Timeline) -> Iterator[str]:
    font, (x, y) = layout.box.font, layout.peak
    size = f"peak {format_bytes(timeline.peak.total_bytes)}"
    where = peak_phase(timeline)
    half = max(text_width(size, font * 1.1), text_width(where, font)) / 2
    middle = min(max(x, layout.left + half), layout.right - half)
    yield f'<circle class="line" cx="{x:.1f}" cy="{y:.1f}" r="4" fill="none" stroke="{INK}" stroke-width="2"/>'
    halo = f'text-anchor="middle" paint-order="stroke" stroke="{SURFACE}" stroke-width="4" stroke-linejoin="round"'
    yield _text(size, Point(middle, y - 1.9 * font), "ink halo", f'{halo} font-weight="700"')
    yield _text(where, Point(middle, y - 0.7 * font), "ink halo", halo)


def _legend(timeline: Timeline, box: Box) -> list[tuple[Point, Group, str]]:
    """Each group's place below the chart, relative to its heading, and its text with the bytes at the peak."""
    font = box.font
    at_peak = timeline.points.index(timeline.peak)
    entries = [(g, f"{g.name} {format_bytes(series[at_peak])}") for g, series in reversed(grouped(timeline))]
    widest = max((text_width(text, font) for _, text in entries), default=0) + 2.6 * font
    columns = max(1, min(len(entries), int((box.width - font) // widest)))
    return [
        (Point(0.8 * font + i % columns * widest, (i // columns + 1) * 1.5 * font), group, text)
        for i, (group, text) in enumerate(entries)
    ]


def _key(layout: Layout, legend: Sequence[tuple[Point, Group, str]]) -> Iterator[str]:
    font = layout.box.font
    begin = layout.bottom + 3.2 * font
    yield _text("at the peak", Point(0.8 * font, begin), "muted")
    for place, group, text in legend:
        y = begin + place.y
        yield (
            f'<rect x="{place.x:.1f}" y="{y - 0.85 * font:.1f}" width="{font:g}" height="{font:g}" rx="2" '
            f'fill="{group.colour}"/>'
        )
        yield _text(text, Point(place.x + 1.4 * font, y))


def _line(points: Iterable[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _text(text: str, place: Point, kind: str = "ink", extra: str = "") -> str:
    colour = MUTED if kind == "muted" else INK
    return f'<text class="{kind}" x="{place.x:.1f}" y="{place.y:.1f}" fill="{colour}" {extra}>{escape(text)}</text>'


def _rule(start: Point, end: Point, kind: str, colour: str) -> str:
    place = f'x1="{start.x:.1f}" y1="{start.y:.1f}" x2="{end.x:.1f}" y2="{end.y:.1f}"'
    return f'<line class="{kind}" {place} stroke="{colour}"/>'


def _wrapped(text: str, width: float, font: float) -> list[str]:
    """A text in lines that fit a width, broken between words; a word that is too long is cut."""
    letters = max(int(width / text_width("n", font)), 8)
    lines: list[str] = []
    for word in text.split():
        short = word if len(word) <= letters else word[: letters - 1] + "…"
        if lines and len(lines[-1]) + 1 + len(short) <= letters:
            lines[-1] += f" {short}"
        else:
            lines.append(short)
    return lines
