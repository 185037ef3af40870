"""Steps of one kind: read from an open play, they are what playing them gives, to the last record."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, product

import pytest

from peftplan import Request
from peftplan.cost.work import step_work
from peftplan.memory.account import account_of, standing
from peftplan.memory.repeated import Kind, Plays
from peftplan.memory.step import play_evaluation, play_step
from peftplan.memory.symbolic_play import OpenStep
from peftplan.memory.symbolic_program import NotAlike
from peftplan.resolve import resolve

SHAPES = tuple(product((1, 2, 5), (1, 128, 1000, 2048)))
RUNS = [
    ("llama-3-8b", {}),
    ("llama-70b", {"method": "qlora"}),
    ("mixtral-8x7b", {}),
    ("gpt2", {"method": "full"}),
    ("gemma-2-9b", {"attention": "eager", "padding": True}),
    ("llama-3-8b", {"grad_accum": 4, "checkpointing": False}),
    ("llama-3-8b", {"loop": "trainer", "grad_accum": 2}),
    ("llama-3-8b", {"loss": "fused"}),
    ("llama-3-8b", {"use_reentrant": True}),
    ("t5-small", {}),
    ("bert-base-uncased", {}),
]
TIMELINE = (
    "phases", "forward_end_bytes", "forward_end_requested", "loss_forward_bytes", "end_bytes", "inputs_requested",
    "inputs_bytes", "forward_end_clock", "end_clock", "end_copies", "order", "backward_clocks",
)  # fmt: skip


def applied(model, options):
    plan = resolve(Request(model=model, micro_batch=2, seq_len=1024, **options))
    made = plan.model
    plan.method.apply(made, plan.method_spec)
    play_step(made, plan.step)  # a first pass casts some biases
    return made, plan.step


def figures(record):
    return [getattr(record, name) for name in record.__slots__]


def same(read, played):
    """Whether two timelines agree in every level, moment and record."""
    for name in TIMELINE:
        assert getattr(read, name) == getattr(played, name), name
    assert read.player.cleared == played.player.cleared
    assert read.player.dropped == played.player.dropped
    assert read.changes() == played.changes()
    for ours, theirs in zip(read.player.segments[:-1], played.player.segments[:-1], strict=True):
        assert figures(ours) == figures(theirs), theirs.name
    ours = chain(read.player.records, read.player.in_place)
    theirs = chain(played.player.records, played.player.in_place)
    for one, other in zip(ours, theirs, strict=True):
        assert figures(one) == figures(other), (other.module, other.op)


@pytest.mark.parametrize(("model", "options"), RUNS)
def test_an_open_play_is_every_play_that_answers_alike(model, options):
    """Levels, moments, segments and every record equal those of the step played with its numbers."""
    made, step = applied(model, options)
    kind = Kind(made, 0)
    read = 0
    for batch, length in SHAPES:
        asked = replace(step, micro_batch=batch, seq_len=length)
        found = kind.step(asked)
        read += found.opened is not None
        same(found, play_step(made, asked))
        alone = replace(asked, checkpointing=False, accumulating=False)
        assert kind.evaluation(alone) == play_evaluation(made, alone)
    assert read > 0


@pytest.mark.parametrize("kernels", ["eager", "fused", "compiled"])
def test_work_is_read_from_an_open_play(kernels):
    """Launches are the same, one by one and in their order, whether read or played."""
    made, step = applied("llama-3-8b", {})
    kind, resident = Kind(made, 0), standing(made, step)
    for batch, length in ((1, 512), (2, 1024), (3, 1000)):
        asked = replace(step, micro_batch=batch, seq_len=length)
        read, played = kind.step(asked), play_step(made, asked)
        ours, theirs = (step_work(made, asked, account_of(t, resident, asked), kernels) for t in (read, played))
        assert ours == theirs
    assert read.opened is not None


def test_a_step_that_answers_otherwise_is_not_read():
    """Below a kernel's threshold the tape is another one, and the open play says so."""
    made, step = applied("gpt2", {"method": "full"})
    opened = OpenStep(made, step, 0)
    with pytest.raises(NotAlike):
        opened.read(replace(step, micro_batch=1, seq_len=1), 0)


def test_kinds_are_made_once_and_the_oldest_goes(monkeypatch):
    """A kind is made when it is first met; beyond the number that is kept, the one used longest ago goes."""
    monkeypatch.setattr("peftplan.memory.repeated.MOST_KINDS", 2)
    plays, made = Plays(), []
    for key in ("a", "b", "a", "c", "a", "b"):
        plays.kind(key, lambda key=key: made.append(key) or object())
    assert made == ["a", "b", "c", "b"]


def test_a_grid_may_begin_with_short_sequences(monkeypatch):
    """Sequences too short to have answers in common do not keep longer ones from being read from one play."""
    model, step = applied("llama-3-8b", {})
    kind, played = Kind(model, 0), []
    monkeypatch.setattr(
        "peftplan.memory.repeated.play_step", lambda *asked: played.append(asked) or play_step(*asked)
    )
    for seq_len in range(64, 6400, 64):
        kind.step(replace(step, micro_batch=1, seq_len=seq_len))
    assert 0 < len(played) < 20
