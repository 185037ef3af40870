"""Where everything of a timeline chart lies: scales, areas, labels. Pixels of a fixed box; no text format yet."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

from peftplan.measure.trace import recording as names
from peftplan.measure.trace.analysis import Timeline
from peftplan.measure.trace.replay import Phase
from peftplan.units import GIB

_WIDTH_OF_LETTER = 0.56  # of the font's size: the mean of a sans-serif face
_LABEL_HEIGHT = 1.25
_NEAR = 0.1  # pixels
_PARTED_FROM = 2  # pixels


class Group(NamedTuple):
    """Categories drawn as one area. Colours are Okabe and Ito's, told apart with any colour vision."""

    name: str
    categories: tuple[str, ...]
    colour: str
    ink: str = "#000000"  # of a label on it


OTHERS = Group("inputs, workspaces", (), "#a6a6a6")  # and whatever has no group of its own
GROUPS = (
    Group("weights", (names.PARAMETER, names.BUFFER), "#0072b2", "#ffffff"),
    Group("adapters", (names.ADAPTER,), "#56b4e9"),
    Group("master weights", (names.MASTER,), "#5c5c5c", "#ffffff"),
    Group("optimizer states", (names.OPTIMIZER_STATE,), "#009e73"),
    OTHERS,
    Group("gradients", (names.GRADIENT,), "#e69f00"),
    Group("activations", (names.ACTIVATION,), "#d55e00"),
    Group("recomputed activations", (names.RECOMPUTED,), "#cc79a7"),
    Group("temporaries", (names.TEMPORARY, names.KERNEL), "#f0e442"),
)

# Names of phases, longest first: the first that fits is shown.
_PHASE_NAMES = {
    names.LOAD: ("loading", "load"),
    names.FORWARD: ("forward", "fwd"),
    names.LOSS: ("loss",),
    names.BACKWARD: ("backward", "bwd"),
    names.STEP: ("optimizer step", "optimizer", "opt"),
}


class Box(NamedTuple):
    """The size of a chart, in pixels where it is shown unscaled."""

    width: int
    height: int
    font: float = 14


WIDE = Box(900, 520)
NARROW = Box(400, 560)


class Point(NamedTuple):
    """A place in the box."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Area:
    """One group's area: its upper and lower edge from left to right, and where its name fits, if anywhere.

    `partings` are the stretches of the lower edge where the area is thick enough to be told from the next one.
    """

    group: Group
    upper: tuple[Point, ...]
    lower: tuple[Point, ...]
    label: Point | None
    partings: tuple[tuple[Point, ...], ...]


@dataclass(frozen=True, slots=True)
class Band:
    """A phase's stretch of the horizontal axis, with the name that fits it."""

    phase: Phase
    left: float
    right: float
    name: str


@dataclass(frozen=True, slots=True)
class Layout:
    """A chart's geometry."""

    box: Box
    left: float
    right: float
    top: float
    bottom: float
    bands: tuple[Band, ...]
    areas: tuple[Area, ...]
    ticks: tuple[tuple[float, str], ...]  # height in the box, text in GiB
    xs: tuple[float, ...]  # of the timeline's points
    peak: Point


def grouped(timeline: Timeline) -> list[tuple[Group, tuple[int, ...]]]:
    """The timeline's bytes by group, in the order in which they are stacked; empty groups are left out."""
    found = []
    known = {category for group in GROUPS for category in group.categories}
    for group in GROUPS:
        wanted = group.categories or tuple(name for name in timeline.categories if name not in known)
        columns = [i for i, name in enumerate(timeline.categories) if name in wanted]
        series = tuple(sum(point.by_category[i] for i in columns) for point in timeline.points)
        if any(series):
            found.append((group, series))
    return found


def text_width(text: str, font: float) -> float:
    """About how wide a text is."""
    return len(text) * font * _WIDTH_OF_LETTER


def lay_out(timeline: Timeline, box: Box, above: float, below: float) -> Layout:
    """Place a timeline in a box, `above` and `below` being left free for what else it shows."""
    font = box.font
    top, bottom = above + 3.4 * font, box.height - below
    # two lines of the peak's label stand above it
    most = max(point.total_bytes for point in timeline.points)
    highest = max(most, 1) / (1 - 3.2 * font / (bottom - top))
    step = _tick_step(highest / GIB)
    decimals = max(0, -math.floor(math.log10(step)))
    texts = [f"{i * step:.{decimals}f}" for i in range(int(highest / GIB / step) + 1)]
    left = max(text_width(text, font) for text in (*texts, "GiB")) + 1.2 * font
    right = box.width - 0.8 * font
    bands = _bands(timeline.phases, left, right, font)
    begins = [band.phase.begin for band in bands]

    def across(event: int) -> float:
        band = bands[max(bisect_right(begins, event - 1) - 1, 0)]
        frac = (event - band.phase.begin) / max(band.phase.end - band.phase.begin, 1)
        return band.left + min(max(frac, 0.0), 1.0) * (band.right - band.left)

    def up(num_bytes: float) -> float:
        return bottom - num_bytes / highest * (bottom - top)

    xs = tuple(across(point.event) for point in timeline.points)
    peak = Point(across(timeline.peak.event), up(timeline.peak.total_bytes))
    return Layout(
        box=box,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        bands=bands,
        areas=tuple(_areas(timeline, xs, up, font)),
        ticks=tuple((up(i * step * GIB), text) for i, text in enumerate(texts)),
        xs=xs,
        peak=peak,
    )


def _tick_step(highest_gib: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides the axis into about five."""
    rough = highest_gib / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _bands(phases: Sequence[Phase], left: float, right: float, font: float) -> tuple[Band, ...]:
    """Phases side by side: as wide as their events are many, but never too narrow for their short name."""
    shown = [phase for phase in phases if phase.end > phase.begin] or list(phases)
    room = right - left
    least = [min(text_width(_PHASE_NAMES[p.name][-1], font) + 0.5 * font, room / len(shown) * 0.95) for p in shown]
    widths = _shares([max(phase.end - phase.begin, 1) for phase in shown], least, room)
    edges = list(accumulate(widths, initial=left))
    bands = []
    for phase, (begin, end) in zip(shown, pairwise(edges)):
        fitting = [n for n in _PHASE_NAMES[phase.name] if text_width(n, font) + 0.2 * font <= end - begin]
        bands.append(Band(phase, begin, end, fitting[0] if fitting else ""))
    return tuple(bands)


def _shares(weights: Sequence[int], least: Sequence[float], room: float) -> list[float]:
    """Parts of a length in proportion to weights, none below its least."""
    fixed: set[int] = set()
    while True:
        free = [i for i in range(len(weights)) if i not in fixed]
        rest = room - sum(least[i] for i in fixed)
        total = sum(weights[i] for i in free)
        short = {i for i in free if weights[i] / total * rest < least[i]}
        if not short:
            return [least[i] if i in fixed else weights[i] / total * rest for i in range(len(weights))]
        fixed |= short
        if len(fixed) == len(weights):
            return [part / sum(least) * room for part in least]


def _areas(timeline: Timeline, xs: Sequence[float], up: Callable[[float], float], font: float) -> list[Area]:
    below = [0] * len(xs)
    areas = []
    for group, series in grouped(timeline):
        above = [low + part for low, part in zip(below, series)]
        upper = [Point(x, up(level)) for x, level in zip(xs, above)]
        lower = [Point(x, up(level)) for x, level in zip(xs, below)]
        label = _room_for(upper, lower, text_width(group.name, font), font * _LABEL_HEIGHT)
        partings = tuple(_straightened(stretch) for stretch in _thick(upper, lower))
        areas.append(Area(group, _straightened(upper), _straightened(lower), label, partings))
        below = above
    return areas


def _thick(upper: Sequence[Point], lower: Sequence[Point]) -> Iterator[list[Point]]:
    """Stretches of the lower edge above which there are a few pixels of area."""
    edges = zip(upper, lower)
    for thick, stretch in groupby(edges, key=lambda pair: pair[1].y - pair[0].y >= _PARTED_FROM):
        points = [low for _, low in stretch]
        if thick and len(points) > 1:
            yield points


def _room_for(upper: Sequence[Point], lower: Sequence[Point], width: float, height: float) -> Point | None:
    """The middle of a roomy place between two edges for a text of that size; None where there is none."""
    rooms: list[tuple[float, Point]] = []
    begin = end = 0
    for x, _ in upper:
        while upper[begin].x < x - width / 2:
            begin += 1
        while end < len(upper) and upper[end].x <= x + width / 2:
            end += 1
        if x - width / 2 < upper[0].x or x + width / 2 > upper[-1].x:
            continue
        # the edges go on to the next points beyond the text on both sides
        part = slice(max(begin - 1, 0), min(end + 1, len(upper)))
        ceiling, floor = max(p.y for p in upper[part]), min(p.y for p in lower[part])
        if floor - ceiling >= height:
            rooms.append((floor - ceiling, Point(x, (ceiling + floor) / 2)))
    if not rooms:
        return None
    # of places about as roomy as the roomiest, the one nearest to the middle
    most = max(room for room, _ in rooms)
    centre = (upper[0].x + upper[-1].x) / 2
    return min((place for room, place in rooms if room >= 0.9 * most), key=lambda place: abs(place.x - centre))


def _straightened(points: Sequence[Point]) -> tuple[Point, ...]:
    """The same line without the points that it passes within a fraction of a pixel anyway."""
    anchor = previous = points[0]
    kept = [anchor]
    low, high = -math.inf, math.inf  # slopes from the anchor that pass near all points since
    for point in points[1:]:
        slope = (point.y - anchor.y) / (point.x - anchor.x) if point.x > anchor.x else math.nan
        if not low <= slope <= high:
            if previous is not anchor:
                kept.append(previous)
            anchor, low, high = previous, -math.inf, math.inf
        run = point.x - anchor.x
        if run > 0:
            low = max(low, (point.y - _NEAR - anchor.y) / run)
            high = min(high, (point.y + _NEAR - anchor.y) / run)
        previous = point
    if previous is not kept[-1]:
        kept.append(previous)
    return tuple(kept)
