"""A played step as a timeline: it ends in the account's own figures, whatever the run."""

from __future__ import annotations

import pytest

from peftplan import Request
from peftplan.planner import settle
from peftplan.render.played import MOST_POINTS, played_timeline
from peftplan.render.timeline_svg import timeline_svg
from peftplan.resolve import resolve

RUNS = (
    {"model": "pythia-70m", "method": "full"},
    {"model": "pythia-70m", "method": "full", "precision": "bf16-master", "grad_accum": 2},
    {"model": "smollm2-135m", "method": "qlora", "checkpointing": False},
    {"model": "smollm2-135m", "loop": "trainer", "grad_accum": 3, "optimizer": "adamw-8bit"},
    {"model": "bert-base-uncased", "seq_len": 128, "gpus": 2},
)


@pytest.mark.parametrize("fields", RUNS, ids=str)
def test_the_peak_of_every_phase_is_the_accounts(fields):
    """To the byte, phase by phase, and the timeline's peak is the run's."""
    plan = resolve(Request(**fields))
    account = settle(plan).account
    timeline = played_timeline(plan).timeline
    peaks = {phase.name: phase.peak.num_bytes for phase in timeline.phases}
    assert peaks == {name: account.moments[name] for name in ("forward", "loss", "backward", "optimizer_step")}
    assert timeline.peak.total_bytes == account.peak_allocated_bytes
    drawn = {point.event: point.total_bytes for point in timeline.points}
    assert all(drawn[phase.peak.event] == phase.peak.num_bytes for phase in timeline.phases)


@pytest.mark.parametrize("fields", RUNS, ids=str)
def test_categories_sum_to_every_point_and_none_is_negative(fields):
    """What is drawn on one another is what is allocated, at no more points than can be drawn."""
    played = played_timeline(resolve(Request(**fields)))
    points = played.timeline.points
    assert all(sum(point.by_category) == point.total_bytes for point in points)
    assert all(size >= 0 for point in points for size in point.by_category)
    assert len(points) == len(played.largest) <= MOST_POINTS + 20
    assert [point.event for point in points] == sorted({point.event for point in points})


def test_the_largest_tensors_are_named_with_their_sizes():
    """At the end of forward the largest kind of tensor is told with its place, count, type and shape."""
    plan = resolve(Request(model="smollm2-135m", checkpointing=False, seq_len=512))
    played = played_timeline(plan)
    end = played.timeline.phases[1].begin
    named = next(words for point, words in zip(played.timeline.points, played.largest) if point.event == end)
    assert len(named) == 3
    assert named[0] == "48.00 MiB lm_head: mm, 1 x bf16[1, 512, 49152]"


def test_it_is_drawn_as_a_traced_run_is():
    """The timeline is of the trace's own kind, so that every drawing of one takes it."""
    svg = timeline_svg(played_timeline(resolve(Request(model="pythia-70m"))).timeline, "a title")
    assert svg.startswith("<svg")
    assert "a title" in svg
