"""What a run reserves: every block's events, and the loop that runs them through the allocator."""

from __future__ import annotations

import random
from itertools import groupby

import pytest

from peftplan import Request, estimate
from peftplan.memory import unrolled
from peftplan.memory.allocator import SMALL_REQUEST, CachingAllocator, OutOfCapacity
from peftplan.memory.fill import fill
from peftplan.memory.reserved import Replay
from peftplan.memory.unrolled import Section, unroll
from peftplan.planner import Settled, settle
from peftplan.resolve import resolve
from peftplan.units import KIB, MIB

RUNS = [
    {"model": "llama-3.2-1b", "method": "lora"},
    {"model": "llama-3.2-1b", "method": "full", "optimizer": "adafactor", "precision": "bf16-master"},
    {"model": "gemma-3-1b-pt", "method": "qlora", "checkpointing": False},
    {"model": "gpt2", "method": "full", "loop": "trainer", "grad_accum": 4},
    {"model": "gpt2", "method": "lora", "checkpointing": False, "grad_accum": 2, "optimizer": "adamw-8bit"},
    {"model": "t5-base", "method": "lora", "use_reentrant": True},
    {"model": "gpt2", "method": "full", "gpus": 2, "grad_accum": 2},
]


def settled(fields: dict[str, object]) -> Settled:
    """A run as the planner settles it."""
    return settle(resolve(Request(seq_len=256, **fields)))


def random_section(rng: random.Random, num_events: int) -> Section:
    """Tensors of all sizes that come, and most of which go."""
    events, live = [], {}
    for key in range(num_events):
        while live and rng.random() < 0.48:
            gone = rng.choice(list(live))
            events.append((gone, -live.pop(gone)))
        live[key] = 512 * rng.choice([1, 3, 200, 2048, 2049, 9000, 20480, 65536, rng.randrange(1, 90000)])
        events.append((key, live[key]))
    return Section(events)


def one_by_one(sections: list[Section], capacity_bytes: int | None = None) -> int | None:
    """The peak of what is reserved by the allocator's own methods; None beyond the capacity."""
    allocator, live = CachingAllocator(capacity_bytes), {}
    try:
        for section in sections:
            for copy in section.copies:
                for key, size in section.events:
                    name = key + copy * section.stride
                    if size > 0:
                        live[name] = allocator.allocate(size)
                    else:
                        allocator.release(live.pop(name), -size <= SMALL_REQUEST)
    except OutOfCapacity:
        return None
    return allocator.peak_reserved_bytes


def filled(sections: list[Section], capacity_bytes: int) -> int | None:
    """The same by the loop."""
    try:
        return fill(sections, capacity_bytes)
    except OutOfCapacity:
        return None


@pytest.mark.parametrize("seed", range(30))
def test_the_loop_does_what_the_allocator_does(seed: int) -> None:
    """On random tensors both reserve the same, without a limit and with limits of every tightness."""
    rng = random.Random(seed)  # noqa: S311
    sections = [random_section(rng, 300)]
    peak = one_by_one(sections)
    assert fill(sections) == peak
    for part in (0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
        capacity = int(peak * part)
        assert filled(sections, capacity) == one_by_one(sections, capacity)


def test_a_section_runs_once_for_each_copy() -> None:
    """Three copies of a section that keeps 12 MiB reserve 36 MiB, and another frees those of the copy before it."""
    assert fill([Section([(0, 12 * MIB)], range(3), 1)]) == 36 * MIB
    handing_on = Section([(1, 12 * MIB), (0, -12 * MIB)], range(3), 1)
    assert fill([Section([(0, 12 * MIB)]), handing_on]) == 24 * MIB


@pytest.mark.parametrize("fields", RUNS, ids=lambda fields: f"{fields['model']}-{fields['method']}")
def test_a_row_played_short_does_what_the_whole_row_does(
    fields: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Playing every block gives the same tensors, in the same order, as writing the middle one out."""
    run = settled(fields)
    short = _sizes(unroll(run.model, run.replay.step))
    monkeypatch.setattr(unrolled, "shortened", lambda runs: (runs, []))
    assert short == _sizes(unroll(run.model, run.replay.step))


def test_units_that_differ_are_all_played(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the unit in the middle stands for no other, the events are those of the whole row."""
    run = settled(RUNS[0])
    regular = unroll(run.model, run.replay.step)

    def differ(*_: object) -> None:
        raise unrolled._Irregular

    monkeypatch.setattr(unrolled._Writer, "_pair", differ)
    whole = unroll(run.model, run.replay.step)
    assert all(len(section.copies) == 1 for section in whole.forward)
    assert _sizes(whole) == _sizes(regular)


def _sizes(micro_step: unrolled.MicroStep) -> list[list[int]]:
    """Sizes in order; what is freed together may come in any order."""
    found = []
    for sections in (micro_step.forward, micro_step.backward):
        sizes = [size for s in sections for _ in s.copies for _, size in s.events]
        for born, group in groupby(sizes, key=lambda size: size > 0):
            together = list(group)
            found.append(together if born else sorted(together))
    lasting = (micro_step.held, [one for one in micro_step.gradients if one])
    return found + [[size for _, size in made] for made in lasting]


@pytest.mark.parametrize("fields", RUNS, ids=lambda fields: f"{fields['model']}-{fields['method']}")
def test_the_events_reach_the_allocated_peak(fields: dict[str, object]) -> None:
    """The highest sum of the run's tensors is the allocated peak that is read from the plays."""
    run = settled(fields)
    level = peak = 0
    for section in run.replay.sections:
        for _ in section.copies:
            for _, size in section.events:
                level += size
                peak = max(peak, level)
    assert peak == pytest.approx(run.account.peak_allocated_bytes, abs=64 * KIB)


@pytest.mark.parametrize("fields", RUNS, ids=lambda fields: f"{fields['model']}-{fields['method']}")
def test_a_run_leaves_its_state_alone(fields: dict[str, object]) -> None:
    """What is alive after the last step was alive after the first: nothing is lost, and nothing freed twice."""
    run = settled(fields)
    alive: dict[int, int] = {}
    for section in run.replay.sections:
        for copy in section.copies:
            for key, size in section.events:
                name = key + copy * section.stride
                if size > 0:
                    assert name not in alive
                    alive[name] = size
                else:
                    assert alive.pop(name) == -size
    resident = run.account.resident.allocated
    assert resident <= sum(alive.values()) <= resident + 40 * MIB  # beside it two workspaces, and a batch


def test_the_least_capacity_is_one_in_which_the_run_completes() -> None:
    """It lies between what is allocated and what is reserved; with less than is allocated the run fails."""
    replay = settled({"model": "llama-3.2-1b", "method": "full"}).replay
    assert isinstance(replay, Replay)
    assert replay.peak_allocated_bytes <= replay.least_capacity_bytes <= replay.reserved_bytes
    assert replay.completes(replay.least_capacity_bytes)
    assert replay.completes(replay.reserved_bytes)
    assert not replay.completes(replay.peak_allocated_bytes - MIB)


def test_one_token_shares_a_gradient_between_neighbouring_blocks() -> None:
    """Of a batch of one token a bias takes as its gradient what the block behind it made: as a trace reserves."""
    request = Request(model="pythia-160m", method="full", checkpointing=False, seq_len=1)
    assert estimate(request).memory.peak_reserved_bytes == 1_700_790_272  # the trace of the whole model, 2026-11-22
