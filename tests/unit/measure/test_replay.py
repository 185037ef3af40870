"""What a recording comes to in the allocator."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from peftplan.measure.trace.recording import Recording
from peftplan.measure.trace.replay import completes, least_capacity_bytes, replay
from peftplan.units import MIB


def test_peaks_are_where_most_is_alive(author: Any) -> None:
    """Requested and rounded bytes at their peak, and the event after which they stood."""
    first = author.make(100)
    author.make(700)
    author.end(first)
    author.make(50)
    figures = replay(author.recording)
    assert (figures.requested.num_bytes, figures.requested.event) == (800, 2)
    assert (figures.allocated.num_bytes, figures.allocated.event) == (512 + 1024, 2)
    assert figures.levels == (0, 512, 1536, 1024, 1536)


def test_blocks_left_whole_count_whole_as_torch_counts_them(author: Any) -> None:
    """A block of 12 MiB serves 11.5 MiB unsplit: torch counts 12, unless segments expand."""
    author.end(author.make(12 * MIB))
    author.make(23 * MIB // 2)
    author.make(30 * MIB)
    figures = replay(author.recording)
    assert figures.allocated.num_bytes == 83 * MIB // 2
    assert figures.segments.allocated.num_bytes == 42 * MIB
    assert figures.expandable.allocated.num_bytes == 83 * MIB // 2
    assert figures.segments.reserved.num_bytes == 42 * MIB
    assert figures.expandable.reserved.num_bytes == 60 * MIB
    assert figures.segments.reserved.event == 4


def test_a_phase_runs_to_the_next(steps: Recording) -> None:
    """Phases cover all events in order; `forward end` is a moment inside the loss, not a phase."""
    figures = replay(steps)
    assert [phase.name for phase in figures.phases] == [
        "loaded",
        *["forward", "loss", "backward", "optimizer_step"] * 2,
    ]
    assert [phase.begin for phase in figures.phases[1:]] == [phase.end for phase in figures.phases[:-1]]
    assert (figures.phases[0].begin, figures.phases[-1].end) == (0, len(steps.events))
    for phase in figures.phases:
        assert phase.peak.num_bytes == max(figures.levels[phase.begin : phase.end + 1])
        assert figures.levels[phase.peak.event] == phase.peak.num_bytes
    assert max(phase.peak.num_bytes for phase in figures.phases) == figures.allocated.num_bytes


def test_micro_batches_of_a_step_are_counted(author: Any) -> None:
    """Where a step has several micro-batches, their phases say which; a single one is not counted."""
    for name in ("forward", "backward", "forward", "backward", "optimizer_step"):
        author.mark(name)
        author.make(512)
    author.mark("forward", 1)
    author.make(512)
    assert [phase.title for phase in replay(author.recording).phases] == [
        "loading",
        "step 1, micro-batch 1, forward",
        "step 1, micro-batch 1, backward",
        "step 1, micro-batch 2, forward",
        "step 1, micro-batch 2, backward",
        "step 1, optimizer step",
        "step 2, forward",
    ]


def test_a_recording_without_marks_is_all_loading(author: Any) -> None:
    """A run that broke off while loading has one phase."""
    author.make(4096)
    (phase,) = replay(author.recording).phases
    assert (phase.name, phase.begin, phase.end, phase.peak.num_bytes) == ("loaded", 0, 1, 4096)


def test_an_empty_recording_is_nothing(author: Any) -> None:
    """No events: every figure is zero."""
    figures = replay(author.recording)
    assert figures.allocated.num_bytes == figures.segments.reserved.num_bytes == 0
    assert completes(author.recording, 0)


def test_the_least_capacity_is_a_border(steps: Recording) -> None:
    """The run completes in the least capacity and in what it reserves freely, not in 2 MiB less."""
    figures = replay(steps)
    for expandable, fill in ((False, figures.segments), (True, figures.expandable)):
        least = least_capacity_bytes(steps, figures, expandable)
        assert figures.allocated.num_bytes <= least <= fill.reserved.num_bytes
        assert completes(steps, least, expandable)
        assert not completes(steps, least - 2 * MIB, expandable)
        assert completes(steps, fill.reserved.num_bytes, expandable)


def test_a_cache_that_can_be_given_back_does_not_make_a_run_unfit(author: Any) -> None:
    """A 40 MiB segment that is free again makes room for one of 60 MiB."""
    author.end(author.make(40 * MIB))
    author.make(60 * MIB)
    figures = replay(author.recording)
    assert figures.segments.reserved.num_bytes == 100 * MIB
    assert least_capacity_bytes(author.recording, figures) == 60 * MIB


def test_replay_is_fast(author: Any, steps_of: Callable[[int], Recording]) -> None:
    """A run of 200,000 events is replayed through both allocators in seconds, not minutes."""
    recording = steps_of(200)
    while len(recording.events) < 200_000:
        held = author.make(3 * MIB + len(recording.events))
        author.end(author.make(512), held)
    begin = time.process_time()
    replay(recording)
    assert time.process_time() - begin < 8
