"""Charts of memory: bars in parts on a card's capacity, and bytes alive through a step. Sizes in GiB of 2^30 bytes.

Colours are those of the package's own timeline, told apart with any colour vision; every area and every part
carries its letter or its name as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import streamlit as st

from explorer import vega
from explorer.vega import Row
from peftplan.measure.trace.analysis import Instant, Timeline, phase_at
from peftplan.measure.trace.recording import RESIDENT
from peftplan.render.blocks import Part, lettered
from peftplan.render.played import PlayedTimeline
from peftplan.render.timeline_layout import GROUPS, grouped
from peftplan.render.timeline_svg import description
from peftplan.render.words import BEYOND_TENSORS
from peftplan.units import GIB, format_bytes

COLOURS = {group.name: group.colour for group in GROUPS}
INKS = {group.name: group.ink for group in GROUPS}
OTHER = "#a6a6a6"
BEYOND = "#d9d9d9"  # what is not torch's own
BAR, ROW = 24, 78  # pixels
_LETTER_FROM = 0.028  # of the axis: narrower parts have no room for a letter
_LABEL_FROM = 0.06  # of the height
_BESIDE = 8  # points
_AXIS = "GiB on one GPU (2^30 bytes)"


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what is said above it, its parts, and the card's capacities where there is a card."""

    name: str
    headline: str
    detail: str
    parts: tuple[Part, ...]
    usable_bytes: int | None = None
    sold_bytes: int | None = None


def memory_bars(bars: Sequence[Bar], words: str) -> None:
    """Bars below one another. The box is what a card can give, its dashed line what it was sold as."""
    names = dict.fromkeys(part.name for bar in bars for part in bar.parts)
    letters = {part.name: part.letter for part in lettered((name, 0) for name in names)}
    segments: list[Row] = []
    for bar in bars:
        begin = 0
        for part in bar.parts:
            segments.append(_segment(bar, part, letters[part.name], begin))
            begin += part.num_bytes
    most = max(max(row["end"] for row in segments), *((bar.sold_bytes or 0) / GIB for bar in bars)) * 1.01
    for row in segments:
        row["letter"] = row["letter"] if row["end"] - row["begin"] >= _LETTER_FROM * most else ""
    boxes = [
        {"bar": bar.name, "begin": 0, "usable": bar.usable_bytes / GIB, "sold": (bar.sold_bytes or 0) / GIB}
        for bar in bars
        if bar.usable_bytes is not None
    ]
    said = [{"bar": bar.name, "begin": 0, "headline": bar.headline, "detail": bar.detail} for bar in bars]
    scale = {"paddingInner": 0.5, "paddingOuter": 0.45}
    y = vega.name("bar", sort=[bar.name for bar in bars], axis=None, scale=scale)
    x = vega.number("begin", title=_AXIS, scale={"domain": [0, most], "nice": False})
    plain, outline = (
        {"align": "left", "color": vega.ink()},
        {"height": BAR + 6, "fillOpacity": 0, "stroke": vega.LINE},
    )
    colour = vega.name("colour", scale=None)
    edge = {"height": BAR, "stroke": "#ffffff", "strokeWidth": 0.7}
    bold, small = {"dy": -BAR / 2 - 27, "fontWeight": "bold", "fontSize": 13}, {"dy": -BAR / 2 - 12, "fontSize": 12}
    vega.show(
        [
            vega.layer(segments, "bar", edge, x=x, x2={"field": "end"}, y=y, color=colour, tooltip=_SAID_OF_PART),
            vega.layer(
                *(segments, "text", {"fontWeight": "bold", "fontSize": 11}),
                x=vega.number("middle"),
                y=y,
                text={"field": "letter"},
                color=vega.name("ink", scale=None),
            ),
            vega.layer(said, "text", plain | bold, x=x, y=y, text={"field": "headline"}),
            vega.layer(said, "text", plain | small, x=x, y=y, text={"field": "detail"}),
            vega.layer(
                boxes, "bar", outline | {"strokeWidth": 1, "strokeDash": [3, 3]}, x=x, x2={"field": "sold"}, y=y
            ),
            vega.layer(boxes, "bar", outline | {"strokeWidth": 2.5}, x=x, x2={"field": "usable"}, y=y),
        ],
        {"step": ROW},
        words,
    )
    legend([(letters[name], name, _colour(name), INKS.get(name, "#000000")) for name in names])


def legend(entries: Iterable[tuple[str, str, str, str]]) -> None:
    """What letters and colours stand for: letter, name, colour, and ink of each."""
    chips = "".join(
        f'<span style="white-space: nowrap; margin-right: 1.1rem"><b style="display: inline-block; width: 1.3rem; '
        f'line-height: 1.5; text-align: center; background: {colour}; color: {on_it}">{escape(letter)}</b> '
        f"{escape(name)}</span> "
        for letter, name, colour, on_it in entries
    )
    st.html(f'<div style="font-size: .8125rem; line-height: 2.1">{chips}</div>')


_SAID_OF_PART = vega.tip(("bar", "part", "size", "share"))


def _segment(bar: Bar, part: Part, letter: str, begin: int) -> Row:
    whole = sum(one.num_bytes for one in bar.parts)
    return {
        "bar": bar.name,
        "part": part.name,
        "letter": letter,
        "colour": _colour(part.name),
        "ink": INKS.get(part.name, "#000000"),
        "begin": begin / GIB,
        "end": (begin + part.num_bytes) / GIB,
        "middle": (begin + part.num_bytes / 2) / GIB,
        "size": format_bytes(part.num_bytes),
        "share": f"{part.num_bytes / whole:.1%} of what is held",
    }


def _colour(name: str) -> str:
    return COLOURS.get(name, BEYOND if name == BEYOND_TENSORS else OTHER)


# ---- through a step


def step_timeline(played: PlayedTimeline, whole: bool) -> None:
    """Bytes alive from event to event, stacked, or what moves alone; pointing at it names the largest tensors."""
    timeline = played.timeline if whole else _moving(played.timeline)
    level = _ALLOCATED if whole else _ABOVE
    groups = [group for group, _ in grouped(timeline)]
    most = max(point.total_bytes for point in timeline.points) / GIB * 1.12
    across = {"domain": [0, timeline.points[-1].event], "nice": False}
    no_ticks = {"labels": False, "ticks": False, "grid": False}
    x = vega.number("event", title="allocations and frees of the step, in their order", axis=no_ticks, scale=across)
    up = {"domain": [0, most], "nice": False}
    y = vega.number("gib", title=f"GiB {level} (2^30)", scale=up, stack=None)
    areas, labels = _areas(timeline)
    ink = {"color": vega.ink()}
    colour = vega.name(
        "group",
        scale={"domain": [group.name for group in groups], "range": [group.colour for group in groups]},
        legend=None,
    )
    named = ink | {"dy": -16, "fontWeight": "bold", "align": _side(timeline)}
    mark = ink | {"shape": "triangle-down", "size": 70, "filled": True, "yOffset": -5}
    full = {"y": {"value": 0}, "y2": {"value": "height"}, "x": x, "x2": {"field": "end"}}
    peak = [_peak_label(timeline, level)]
    fields = ("phase", level, *(group.name for group in groups), *_LARGEST)
    vega.show(
        [
            vega.layer(_bands(timeline), "rect", {"opacity": 0.08, "color": vega.LINE}, **full),
            vega.layer(
                *(areas, "area", {"opacity": 1, "line": {"color": "#ffffff", "strokeWidth": 0.5}}),
                x=x,
                y=y,
                y2={"field": "base"},
                color=colour,
            ),
            vega.layer(
                *(labels, "text", {"fontSize": 11}),
                x=x,
                y=y,
                text={"field": "group"},
                color=vega.name("ink", scale=None),
            ),
            vega.layer(
                *(_phase_labels(timeline), "text", ink | {"baseline": "top", "fontSize": 11}),
                x=x,
                y={"value": 2},
                text={"field": "phase"},
            ),
            vega.layer(peak, "point", mark, x=x, y=y),
            vega.layer(peak, "text", named, x=x, y=y, text={"field": "text"}),
            vega.layer(
                _hover(timeline, played.largest, level), "rect", {"opacity": 0}, tooltip=vega.tip(fields), **full
            ),
        ],
        440,
        description(timeline),
    )
    shown = lettered((group.name, 0) for group in groups)
    legend([(part.letter, part.name, COLOURS[part.name], INKS[part.name]) for part in shown])


_ALLOCATED, _ABOVE = "allocated", "above what stands"
_LARGEST = ("largest", "second", "third")


def _areas(timeline: Timeline) -> tuple[list[Row], list[Row]]:
    """Edges of the stacked areas, and names where an area is high enough for one."""
    points, below = timeline.points, [0] * len(timeline.points)
    rows: list[Row] = []
    labels: list[Row] = []
    highest = max(point.total_bytes for point in points)
    inner = range(len(points) // 6, len(points) * 5 // 6)
    for group, series in grouped(timeline):
        for number, point in enumerate(points):
            base = below[number]
            size = series[number]
            rows.append({"group": group.name, "event": point.event, "base": base / GIB, "gib": (base + size) / GIB})
        # as high as the lowest of what lies beside it, so that a spike gets no name
        widest = max(inner, key=lambda number: min(series[number - _BESIDE : number + _BESIDE + 1]))
        if min(series[widest - _BESIDE : widest + _BESIDE + 1]) >= _LABEL_FROM * highest:
            middle = (below[widest] + series[widest] / 2) / GIB
            labels.append({"group": group.name, "event": points[widest].event, "gib": middle, "ink": group.ink})
        below = [low + size for low, size in zip(below, series)]
    return rows, labels


def _bands(timeline: Timeline) -> list[Row]:
    return [{"event": phase.begin, "end": phase.end} for phase in timeline.phases[1::2]]


def _phase_labels(timeline: Timeline) -> list[Row]:
    """Names of the phases that are wide enough for one."""
    last = timeline.points[-1].event
    return [
        {"event": (phase.begin + phase.end) / 2, "phase": phase.name.partition("_")[0]}
        for phase in timeline.phases
        if phase.end - phase.begin > last / 20
    ]


def _peak_label(timeline: Timeline, level: str) -> Row:
    peak = timeline.peak
    return {
        "event": peak.event,
        "gib": peak.total_bytes / GIB,
        "text": f"peak {format_bytes(peak.total_bytes)} {level}",
    }


def _side(timeline: Timeline) -> Any:
    """Where the peak's label has room."""
    place = timeline.peak.event / timeline.points[-1].event
    return "left" if place < 0.25 else "right" if place > 0.75 else "center"


def _moving(timeline: Timeline) -> Timeline:
    """The same without what stands through the step."""
    kept = [number for number, name in enumerate(timeline.categories) if name not in RESIDENT]

    def above(point: Instant) -> Instant:
        sizes = tuple(point.by_category[number] for number in kept)
        return Instant(point.event, sum(sizes), sizes)

    categories = tuple(timeline.categories[number] for number in kept)
    return Timeline(categories, tuple(map(above, timeline.points)), timeline.phases, above(timeline.peak))


def _hover(timeline: Timeline, largest: Sequence[tuple[str, ...]], level: str) -> list[Row]:
    """A stretch around every point with what is alive there."""
    points = timeline.points
    groups = grouped(timeline)
    edges = [(one.event + two.event) / 2 for one, two in pairwise(points)]
    rows = []
    for number, point in enumerate(points):
        begin = edges[number - 1] if number else point.event
        end = edges[number] if number < len(edges) else point.event
        named = dict(zip(_LARGEST, largest[number]))
        rows.append(
            {
                "event": begin,
                "end": end,
                "phase": phase_at(timeline.phases, point.event).name.replace("_", " "),
                level: format_bytes(point.total_bytes),
                **{group.name: format_bytes(series[number]) for group, series in groups},
                **{name: named.get(name, "-") for name in _LARGEST},
            }
        )
    return rows
