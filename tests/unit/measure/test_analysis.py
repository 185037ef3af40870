"""What is alive at a moment, and the shape of a run."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan.measure.trace.analysis import by_category, in_order, largest, timeline, tree
from peftplan.measure.trace.recording import Recording
from peftplan.measure.trace.replay import replay
from peftplan.units import MIB


def test_the_largest_storages_come_with_what_they_are(author: Any) -> None:
    """Largest first, of equals the older, each with its category, module, operation, shape and birth."""
    author.make(30, "parameter", "model.norm", "weight", (15,))
    author.mark("forward")
    author.end(author.make(999))
    author.make(80, "activation", "model.layers.1.mlp", "aten::mm", (4, 5, 2))
    author.make(80, "activation", "model.layers.2.mlp", "aten::mm", (4, 5, 2))
    figures = replay(author.recording)
    first, second = largest(author.recording, figures, len(author.recording.events), count=2)
    assert (first.num_bytes, first.category, first.module) == (80, "activation", "model.layers.1.mlp")
    assert (first.operation, first.shape, first.dtype) == ("aten::mm", (4, 5, 2), "bfloat16")
    assert (first.phase, first.step) == ("forward", 0)
    assert second.module == "model.layers.2.mlp"
    (weight,) = largest(author.recording, figures, 1)
    assert (weight.phase, weight.module) == ("loaded", "model.norm")


def test_a_storage_is_born_in_the_phase_of_its_event(author: Any) -> None:
    """The first event behind a mark belongs to the new phase, the last one before it to the old."""
    author.make(10)
    author.mark("forward")
    author.make(20)
    author.mark("loss")
    author.make(30)
    born = largest(author.recording, replay(author.recording), 3)
    assert [one.phase for one in born] == ["loss", "forward", "loaded"]


def test_categories_add_up_to_what_is_allocated(steps: Recording) -> None:
    """Bytes by category and the allocator's rounding are the allocated bytes, at every event."""
    figures = replay(steps)
    for event in range(0, len(steps.events) + 1, 3):
        assert sum(by_category(steps, event).values()) == figures.levels[event]
    assert by_category(steps, 4) == {"parameter": 95 * MIB + 100, "allocator rounding": 412}


def test_categories_keep_their_order() -> None:
    """What stays comes first, what is short-lived later, unknown names last."""
    assert in_order(["zebra", "temporary", "activation", "parameter", "ape"]) == [
        *("parameter", "activation", "temporary"),
        *("ape", "zebra"),
    ]


def test_the_tree_sums_and_merges_blocks_alike(steps: Recording) -> None:
    """Every node is the sum of its children, the root what is allocated, and layers are one node `*`."""
    figures = replay(steps)
    root = tree(steps, figures.allocated.event)
    assert root.bytes == figures.allocated.num_bytes
    for _, node in root.walk():
        assert not node.children or node.bytes == sum(child.bytes for child in node.children)
    names = {node.name: node for _, node in root.walk()}
    layers = names["layers.*.mlp"]
    assert layers.formula == "3 alike"
    weights = next(child for child in layers.children if child.name.startswith("parameter"))
    assert (weights.bytes, weights.formula) == (90 * MIB, f"3 × [15, {MIB}] bfloat16")
    assert names["allocator rounding"].bytes == root.bytes - sum(
        child.bytes for child in root.children if child.name != "allocator rounding"
    )


@pytest.mark.parametrize("max_points", [1, 20, 25, 1000])
def test_a_thinned_timeline_keeps_every_peak(steps: Recording, max_points: int) -> None:
    """However few points: both ends, every phase's begin and peak stay, and each point's parts sum."""
    figures = replay(steps)
    shown = timeline(steps, figures, max_points)
    at = {point.event: point for point in shown.points}
    for phase in figures.phases:
        assert at[phase.peak.event].total_bytes == phase.peak.num_bytes
        assert phase.begin in at
    for point in shown.points:
        assert sum(point.by_category) == point.total_bytes == figures.levels[point.event]
    assert shown.peak.total_bytes == figures.allocated.num_bytes
    assert {0, len(steps.events)} <= set(at)
    must = {0, len(steps.events)} | {e for p in figures.phases for e in (p.begin, p.peak.event)}
    assert len(shown.points) <= max(max_points, len(must))


def test_a_timeline_with_room_shows_every_event(steps: Recording) -> None:
    """More points than events: nothing is thinned."""
    shown = timeline(steps, replay(steps), 10_000)
    assert [point.event for point in shown.points] == list(range(len(steps.events) + 1))


def test_the_peak_told_of_can_be_that_of_a_later_step(steps: Recording) -> None:
    """Where steps are alike, the caller says whose peak is meant; its point is kept."""
    figures = replay(steps)
    later = figures.phase("optimizer_step", 1).peak.event
    assert timeline(steps, figures, 1).peak.event == figures.phase("optimizer_step", 0).peak.event < later
    assert timeline(steps, figures, 1, at=later).peak.event == later
