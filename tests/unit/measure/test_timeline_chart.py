"""A traced run as a picture: geometry, SVG, page and PNG."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from peftplan.errors import MachineLacks
from peftplan.measure.trace.analysis import largest, timeline
from peftplan.measure.trace.recording import Recording
from peftplan.measure.trace.replay import replay
from peftplan.render.timeline import timeline_html, timeline_png, timeline_svg
from peftplan.render.timeline_layout import (
    GROUPS,
    NARROW,
    WIDE,
    Box,
    Layout,
    Point,
    _straightened,
    grouped,
    lay_out,
    text_width,
)
from peftplan.units import GIB, format_bytes

SVG = "{http://www.w3.org/2000/svg}"
BOTH = pytest.mark.parametrize("box", [WIDE, NARROW], ids=["wide", "narrow"])


def shown(recording: Recording) -> Any:
    return timeline(recording, replay(recording))


def placed(recording: Recording, box: Box = WIDE) -> Layout:
    return lay_out(shown(recording), box, above=20, below=100)


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314 made here


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter(f"{SVG}text")]


def height_at(points: tuple[Point, ...], x: float) -> float:
    """The height of a line at a place between its ends."""
    for first, second in pairwise(points):
        if first.x <= x <= second.x and second.x > first.x:
            return first.y + (second.y - first.y) * (x - first.x) / (second.x - first.x)
    raise AssertionError(x)


# ---- geometry


@BOTH
def test_areas_are_stacked_without_gap(steps_of: Callable[[int], Recording], box: Box) -> None:
    """Each area begins where the one below it ends, the lowest on the axis; the peak is the highest place."""
    layout = placed(steps_of(9), box)
    for low, high in pairwise(layout.areas):
        for x in (layout.left + 1, layout.peak.x - 1, layout.right - 1):
            assert height_at(low.upper, x) == pytest.approx(height_at(high.lower, x), abs=0.25)
    assert {point.y for point in layout.areas[0].lower} == {layout.bottom}
    assert min(point.y for area in layout.areas for point in area.upper) == layout.peak.y
    assert layout.peak.y > layout.top


@BOTH
def test_phases_lie_side_by_side_each_with_its_name(steps: Recording, box: Box) -> None:
    """Phases cover the axis in order, and each is wide enough for a name, however few its events."""
    layout = placed(steps, box)
    assert [band.phase.name for band in layout.bands] == [
        "loaded",
        *["forward", "loss", "backward", "optimizer_step"] * 2,
    ]
    assert layout.bands[0].left == layout.left
    assert layout.bands[-1].right == pytest.approx(layout.right)
    for band in layout.bands:
        assert band.name
        assert text_width(band.name, box.font) <= band.right - band.left
    for first, second in pairwise(layout.bands):
        assert first.right == second.left


def test_points_lie_in_the_bands_of_their_phases(steps: Recording) -> None:
    """Every point of a phase stands between the phase's edges, and points never go back."""
    run = shown(steps)
    layout = lay_out(run, WIDE, above=20, below=100)
    assert list(layout.xs) == sorted(layout.xs)
    for band in layout.bands:
        inside = [x for x, p in zip(layout.xs, run.points) if band.phase.begin < p.event <= band.phase.end]
        assert all(band.left <= x <= band.right + 1e-9 for x in inside)


@BOTH
def test_names_stand_inside_their_areas(steps_of: Callable[[int], Recording], box: Box) -> None:
    """A name is written where the area is higher than the text over the text's whole width."""
    layout = placed(steps_of(40), box)
    named = [area for area in layout.areas if area.label is not None]
    assert named
    for area in named:
        assert area.label is not None
        half = text_width(area.group.name, box.font) / 2
        for x in (area.label.x - half, area.label.x, area.label.x + half):
            assert height_at(area.upper, x) <= area.label.y - 0.45 * box.font
            assert height_at(area.lower, x) >= area.label.y + 0.45 * box.font


@pytest.mark.parametrize("gib", [0.003, 0.4, 7.2, 63.0, 812.0])
def test_ticks_are_round_and_few(author: Any, gib: float) -> None:
    """The axis has three to nine ticks at round multiples, in GiB, from zero."""
    author.make(int(gib * GIB))
    layout = placed(author.recording)
    values = [float(text) for _, text in layout.ticks]
    assert values[0] == 0
    assert 3 <= len(values) <= 9
    for (y, _), value in zip(layout.ticks, values):
        assert y == pytest.approx(layout.bottom - value / values[1] * (layout.bottom - layout.ticks[1][0]))
    mantissa = values[1] / 10 ** math.floor(math.log10(values[1]))
    assert round(mantissa, 6) in (1, 2, 5)


@pytest.mark.parametrize("seed", range(5))
def test_a_straightened_line_stays_where_it_was(seed: int) -> None:
    """Points are dropped only where the line passes within a fraction of a pixel of them."""
    rng = random.Random(seed)  # noqa: S311
    y = 0.0
    points = []
    for x in range(400):
        y += rng.choice([0, 0, 0.02, 0.02, 0.03, 5, -4]) * (x % 50 > 20)
        points.append(Point(float(x), y))
    kept = _straightened(points)
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert len(kept) < len(points)
    assert max(abs(height_at(kept, point.x) - point.y) for point in points) <= 0.11


def test_every_category_has_an_area(author: Any) -> None:
    """Bytes of all categories are drawn, unknown ones with the workspaces; colours differ."""
    sizes = {"parameter": 1, "buffer": 2, "input": 3, "workspace": 4, "kernel workspace": 5, "made up": 6}
    for name, size in sizes.items():
        author.make(512 * size, name)
    run = shown(author.recording)
    last = {group.name: series[-1] // 512 for group, series in grouped(run)}
    assert last == {"weights": 3, "inputs, workspaces": 13, "temporaries": 5}
    assert len({group.colour for group in GROUPS}) == len(GROUPS)


@pytest.mark.parametrize("event_count", [0, 1])
def test_a_run_of_next_to_nothing_is_drawn(author: Any, event_count: int) -> None:
    """A recording without events, or with a single one, gives a chart and a page."""
    if event_count:
        author.make(4096, "parameter")
    run = shown(author.recording)
    assert "peak" in timeline_svg(run)
    assert "<figure>" in timeline_html(run, "nothing")


# ---- SVG


@BOTH
def test_the_picture_says_what_it_shows(steps: Recording, box: Box) -> None:
    """Title and description for those who do not see it; phases, steps, peak and unit for those who do."""
    run = shown(steps)
    svg = timeline_svg(run, "A <small> run & more", box)
    root = parsed(svg)
    assert root.get("role") == "img"
    assert (root.findtext(f"{SVG}title") or "") == "A <small> run & more"
    words = root.findtext(f"{SVG}desc") or ""
    assert format_bytes(run.peak.total_bytes) in words
    assert "weights" in words
    written = texts(svg)
    assert {"GiB", "step 1", "step 2", "loss", "at the peak"} <= set(written)
    assert f"peak {format_bytes(run.peak.total_bytes)}" in written
    areas = [element.get("fill") for element in root.iter(f"{SVG}polygon")]
    assert areas == [group.colour for group, _ in grouped(run)]


@BOTH
def test_nothing_is_written_beyond_the_edge(steps: Recording, box: Box) -> None:
    """Every text begins and ends inside the picture."""
    svg = timeline_svg(shown(steps), "A heading of many words that must be broken into lines on a phone", box)
    for element in parsed(svg).iter(f"{SVG}text"):
        width = text_width(element.text or "", float(element.get("font-size", box.font)))
        share = {"middle": 0.5, "end": 1.0}.get(element.get("text-anchor", ""), 0.0)
        x = float(element.get("x", "nan"))
        assert x - share * width >= -1, element.text
        assert x + (1 - share) * width <= box.width + 1, element.text
        assert 0 <= float(element.get("y", "nan")) <= box.height


def test_only_an_adaptive_picture_has_a_style_sheet(steps: Recording) -> None:
    """For documents it turns dark with its reader; for a rasteriser it is plain."""
    assert "prefers-color-scheme: dark" in timeline_svg(shown(steps))
    assert "<style" not in timeline_svg(shown(steps), adaptive=False)


# ---- the page


def page_of(recording: Recording) -> str:
    figures = replay(recording)
    tensors = largest(recording, figures, figures.allocated.event, 8)
    return timeline_html(timeline(recording, figures), "A run", tensors, [("Reserved", "1.00 GiB")])


def test_the_page_needs_nothing_from_anywhere(steps: Recording) -> None:
    """No address, no file, no library: and the browser is told to fetch none."""
    page = page_of(steps)
    assert not re.search(r"https?:|//[a-z]|\ssrc=|\shref=|@import|url\(|<link|<iframe", page)
    assert "default-src 'none'" in page


def test_the_page_holds_what_the_pointer_shows(steps: Recording) -> None:
    """The script's data are the timeline's points, their phases, and the largest tensors at the peak."""
    run = shown(steps)
    page = page_of(steps)
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found
    data = json.loads(found[1])
    assert data["totals"] == [point.total_bytes for point in run.points]
    for i, total in enumerate(data["totals"]):
        assert sum(series[i] for series in data["series"]) == total
    assert data["totals"][data["peak"]] == run.peak.total_bytes == max(data["totals"])
    assert data["phases"][data["phaseOf"][data["peak"]]].startswith("step ")
    assert len(data["largest"]) == 5
    for shape in data["shapes"].values():
        assert len(shape["xs"]) == len(run.points)
    assert "Reserved: 1.00 GiB." in page
    assert "Most allocated in each phase" in page


def test_names_from_a_model_cannot_break_the_page(author: Any) -> None:
    """Markup in a module's or operation's name is shown, not obeyed."""
    author.make(4096, "parameter", "</script><img src=x onerror=alert(1)>", "<b>&amp;</b>")
    page = page_of(author.recording)
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert "<b>" not in page
    assert "&lt;img src=x" in page


def test_the_script_is_sound(steps: Recording, tmp_path: Path) -> None:
    """A JavaScript engine reads the page's script without an error."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    script = re.findall(r"<script>(.*?)</script>", page_of(steps), re.DOTALL)
    (tmp_path / "page.js").write_text(script[0], encoding="utf-8")
    done = subprocess.run([node, "--check", tmp_path / "page.js"], capture_output=True, text=True, check=False)
    assert done.stderr == ""


# ---- PNG


def test_a_png_has_the_boxs_size(steps: Recording) -> None:
    """Two pixels for each of the box's, in the format's own words."""
    pytest.importorskip("vl_convert")
    picture = timeline_png(shown(steps), "A run", NARROW)
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", picture[16:24]) == (2 * NARROW.width, 2 * NARROW.height)


def test_without_the_extra_a_png_is_refused(steps: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install, and what works without."""
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MachineLacks, match=r"pip install 'peftplan\[charts\]'") as caught:
        timeline_png(shown(steps))
    assert ".svg" in str(caught.value)
