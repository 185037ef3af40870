"""Steps of varying length through the allocator: like lengths are a plain run, unlike ones fragment the cache."""

from __future__ import annotations

import pytest

from peftplan import Request
from peftplan.memory.varying import reserved_after_steps
from peftplan.planner import Settled, settle
from peftplan.resolve import Plan, resolve

REQUEST = Request(model="gpt2", method="lora", targets="attention", seq_len=256, checkpointing=False)


def settled(**fields: object) -> tuple[Plan, Settled]:
    """A small model's run, as the planner settles it."""
    plan = resolve(REQUEST.model_copy(update=fields))
    return plan, settle(plan)


def after(lengths: list[int], emptied: tuple[int, ...] = (), **fields: object) -> list[int]:
    """Reserved bytes after each step."""
    plan, run = settled(**fields)
    return reserved_after_steps(run.model, plan.step, lengths, emptied)


def test_two_steps_of_one_length_reserve_what_an_estimate_says() -> None:
    """The replay of one length and the replay of many are the same program."""
    _, run = settled()
    assert after([256, 256])[-1] == run.replay.reserved_bytes


def test_what_is_reserved_never_shrinks_by_itself() -> None:
    """Shorter batches find room in what longer ones left, and nothing is given back unasked."""
    found = after([256, 64, 128, 32])
    assert found == sorted(found)


def test_emptying_the_cache_gives_back_what_the_longest_batch_took() -> None:
    """Before a short batch, an emptied cache leaves less reserved than one that keeps all."""
    assert after([256, 64], (1,))[-1] < after([256, 64])[-1]


def test_an_output_that_is_named_lasts_into_the_next_forward_pass() -> None:
    """A loop that holds the logits until the next ones are there reserves more where the next batch is longer."""
    assert after([192, 256], (1,), keep_outputs=True)[-1] > after([192, 256], (1,))[-1]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_longer_first_step_needs_no_more_later(method: str) -> None:
    """After the longest batch the same batch again reserves nothing more."""
    found = after([256, 256, 256], method=method)
    assert found[1] == found[2]
