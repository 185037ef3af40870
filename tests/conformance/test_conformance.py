"""The trace, run now: it says what was recorded, and the closed form agrees with it."""

from __future__ import annotations

import os
import random

import pytest
from cases import Case, errors, recorded
from error_table import within
from tracing import first, traced

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

CASES = recorded()
LONG_SWEEP = 1000


@pytest.fixture(scope="module")
def answers() -> dict[int, Case]:
    """Every recorded case traced again."""
    return {case.number: answer for case, answer in zip(CASES, traced(CASES)) if isinstance(answer, Case)}


def test_at_least_two_hundred_cases_are_traced(answers: dict[int, Case]) -> None:
    """No recorded case is refused, and there are at least 200 of them."""
    assert len(answers) == len(CASES) >= 200


def test_the_trace_says_what_was_recorded(answers: dict[int, Case]) -> None:
    """Every figure of every case is the recorded one, to the byte."""
    assert [c.label() for c in CASES if answers[c.number].answer != c.answer] == []


def test_the_closed_form_agrees_with_the_trace(answers: dict[int, Case]) -> None:
    """Activations and allocated peak within 1 %, resident bytes exactly, of the traces just made."""
    assert [case.label() for case in answers.values() if not within(errors(case))] == []


@pytest.mark.sweep
def test_a_long_sweep_agrees() -> None:
    """A thousand fresh random runs (PEFTPLAN_SWEEP_SEED draws others): the same bounds."""
    seed = int(os.environ.get("PEFTPLAN_SWEEP_SEED") or random.SystemRandom().randrange(10**6))
    drawn = first(LONG_SWEEP, seed)
    found = [case for case in traced(drawn) if isinstance(case, Case)]
    assert len(found) > LONG_SWEEP // 2
    assert [
        (case.label(), case.model, case.layers, case.request) for case in found if not within(errors(case))
    ] == []
