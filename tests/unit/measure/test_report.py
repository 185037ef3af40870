"""A recording as a report: the closed form's terms, sums that hold to the byte, and what only a trace knows."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan import Request
from peftplan.breakdown import Node
from peftplan.measure.trace.account import activations_bytes, moments, peak_event, peak_tensors, resident
from peftplan.measure.trace.plan import plan_trace
from peftplan.measure.trace.recording import Recording
from peftplan.measure.trace.replay import replay
from peftplan.measure.trace.report import TraceReport, trace_report
from peftplan.render.plain import plain
from peftplan.render.table_csv import report_csv
from peftplan.render.trace import trace_blocks
from peftplan.units import MIB

FACTS = {
    "num_params": 95 * MIB,
    "num_inactive_params": 5 * MIB,
    "num_trainable_params": 45 * MIB,
    "num_adapter_params": 5 * MIB,
    "adapter_checkpoint_bytes": 7,
    "paged_bytes": 0,
    "libraries": {"torch": "2.13.0", "transformers": "5.23.1"},
    "device": "cuda",
    "notes": ["said by the child"],
    "attention_kernels": ["math"],
    "build_s": 0.5,
    "trace_s": 1.5,
}


@pytest.fixture
def recording(steps: Recording) -> Recording:
    """Two steps of a small model of three layers, and what its child would say of it."""
    begin = next(mark for mark in steps.marks if mark.name == "forward").event
    steps.marks.insert(0, type(steps.marks[0])("loaded", 0, begin))
    steps.facts = dict(FACTS)
    return steps


def reported(recording: Recording, **fields: Any) -> TraceReport:
    return trace_report(plan_trace(Request(model="gpt2", **fields)), recording)


def sums_up(node: Node) -> None:
    assert not node.children or node.bytes == sum(child.bytes for child in node.children)
    for child in node.children:
        sums_up(child)


def test_moments_are_those_of_the_last_step(recording: Recording) -> None:
    """Allocated bytes, of the step in which optimizer states exist."""
    found = moments(recording, replay(recording))
    weights = 95 * MIB + 512
    before = weights + 180 * MIB + 1024  # states and inputs
    saved = 3 * (7 * MIB + 512)
    assert found == {
        "loaded": weights,
        "forward": before + saved,
        "forward_end": before + saved + 64 * MIB,
        "loss": before + saved + 128 * MIB,
        "backward": before + 7 * MIB + 512 + 90 * MIB,
        "optimizer_step": before + 90 * MIB + 90 * MIB,
    }


def test_the_peak_is_the_highest_moment(recording: Recording) -> None:
    """Its event is where the levels have it."""
    replayed = replay(recording)
    name, event = peak_event(recording, replayed)
    assert name == "optimizer_step"
    assert replayed.levels[event] == max(moments(recording, replayed).values())


def test_resident_state_is_counted_as_requested(recording: Recording) -> None:
    """Gradients are those that the optimizer step finds."""
    assert resident(recording) == {
        "weights": 95 * MIB + 100,
        "adapters": 0,
        "gradients": 90 * MIB,
        "master_weights": 0,
        "optimizer_states": 180 * MIB,
    }


def test_activations_are_what_forward_leaves_beyond_state_and_inputs(recording: Recording) -> None:
    """Saved tensors and logits, in requested bytes."""
    assert activations_bytes(recording) == 3 * (7 * MIB + 8) + 64 * MIB


def test_a_model_without_a_head_stands_at_the_end_of_forward(recording: Recording) -> None:
    """Where no phase of the loss begins, its moment is the level at the end of forward."""
    recording.marks = [mark for mark in recording.marks if mark.name != "loss"]
    found = moments(recording, replay(recording))
    assert found["loss"] == found["forward_end"]


def test_the_breakdown_is_the_peak_to_the_byte(recording: Recording) -> None:
    """Every node is the sum of its parts, rounding included, and the parts go by the closed form's names."""
    memory = reported(recording).memory
    assert memory.breakdown.bytes == memory.peak_allocated_bytes
    sums_up(memory.breakdown)
    assert [node.name for node in memory.breakdown.children] == [
        "weights",
        "optimizer states",
        "gradients",
        "inputs",
        "optimizer step temporaries",
        "allocator rounding",
    ]


def test_clipping_is_told_from_updating(recording: Recording) -> None:
    """What the optimizer step holds before it begins to update belongs to the clipping of gradients."""
    event = peak_event(recording, replay(recording))[1]
    recording.marks.append(type(recording.marks[0])("update", 1, event))
    assert "gradient clipping" in peak_tensors(recording, "optimizer_step", event)
    assert "optimizer step temporaries" not in peak_tensors(recording, "optimizer_step", event)


def test_a_report_has_the_keys_of_an_estimate_and_more(recording: Recording) -> None:
    """What a script reads of an estimate it finds in a trace."""
    report = reported(recording)
    assert set(type(report).__mro__[1].model_fields) <= set(report.model_dump())
    assert report.engine == "trace"
    assert report.mode == "fake-cuda"
    assert report.totals.allocated_bytes == report.memory.peak_allocated_bytes
    assert report.totals.requested_bytes < report.totals.allocated_bytes <= report.totals.reserved_bytes
    assert [(phase.name, phase.step) for phase in report.phases][-1] == ("optimizer_step", 1)
    assert report.largest[0].num_bytes == 90 * MIB
    assert sum(report.categories.values()) == report.tree.bytes == report.memory.peak_allocated_bytes
    assert report.seconds.trace_s == 1.5
    assert report.model.num_active_params == 90 * MIB
    assert report.method.trainable_frac == 0.45


def test_what_the_child_says_is_among_the_notes(recording: Recording) -> None:
    """Its notes, and the remark on attention's math form."""
    notes = reported(recording).notes
    assert "said by the child" in notes
    assert any("math form" in note for note in notes)


def test_the_releases_are_those_that_ran(recording: Recording) -> None:
    """The request tells them, as does `libraries`."""
    report = reported(recording)
    assert report.request["transformers"] == report.libraries["transformers"] == "5.23.1"


def test_the_closed_form_lends_what_a_trace_does_not_run(recording: Recording) -> None:
    """An evaluation pass and loading, where it knows model and method; nothing where it does not."""
    known, unknown = reported(recording).memory, reported(recording, method="xlora").memory
    assert known.evaluation_peak_bytes
    assert known.load is not None
    assert unknown.evaluation_peak_bytes is None
    assert unknown.load is None


def test_paged_states_count_on_the_device(recording: Recording) -> None:
    """Managed memory is outside the allocator; at worst all of it is on the device."""
    before = reported(recording).memory
    recording.facts["paged_bytes"] = 5 * MIB
    after = reported(recording).memory
    assert after.device_bytes - before.device_bytes == 5 * MIB
    assert after.peak_reserved_bytes == before.peak_reserved_bytes


def test_a_card_is_asked_by_replay(recording: Recording) -> None:
    """The run fits where its events complete; what is to spare, or what is missing, is told."""
    found = reported(recording, gpu="rtx4090").gpu
    assert found is not None
    assert found.fits
    assert found.certain
    assert 0 < found.headroom_bytes < found.usable_bytes
    recording.sizes[0] *= 1000
    found = reported(recording, gpu="rtx4090").gpu
    assert found is not None
    assert not found.fits
    assert found.certain
    assert found.headroom_bytes < 0


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_screen_keeps_to_its_width(recording: Recording, width: int) -> None:
    """No line is wider than the terminal."""
    text = plain(trace_blocks(reported(recording, gpu="rtx4090")), width)
    assert [line for line in text.splitlines() if len(line) > width] == []


def test_a_row_of_csv_holds_no_lists(recording: Recording) -> None:
    """One line of figures under one line of names; phases and tensors are in the JSON."""
    names, values = report_csv(reported(recording)).splitlines()
    assert "totals.reserved_expandable_bytes" in names
    assert "timeline" not in names
    assert len(values) < 2000
