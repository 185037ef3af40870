"""The record of one measured run: it survives a round trip, and damage is named."""

from __future__ import annotations

import json
from datetime import date

import pytest

from peftplan import Request
from peftplan.errors import BadInput
from peftplan.measured import METRICS, Figures, Hardware, MeasuredRun, read_record


def record(**changes: object) -> MeasuredRun:
    """A run with an allocated peak and a step time."""
    fields: dict[str, object] = {
        "kind": "profile",
        "source": "a test",
        "date": date(2026, 11, 22),
        "request": Request(model="gpt2"),
        "measured": Figures(allocated_bytes=10**9, step_s=0.5, moments={"loaded": 5}),
        "hardware": Hardware(gpu="Tesla T4"),
        **changes,
    }
    return MeasuredRun(**fields)  # type: ignore[arg-type]


def test_a_record_survives_a_round_trip() -> None:
    """What is written as JSON is read as the same record."""
    run = record(libraries={"torch": "2.13.0"}, notes=("one",))
    assert read_record(run.model_dump_json(), "a.json") == run


def test_figures_are_found_by_their_metric() -> None:
    """Every metric names one figure; what was not measured is None."""
    found = {metric: record().measured.of(metric) for metric in METRICS}
    assert found == {"allocated": 1e9, "reserved": None, "device": None, "tokens_per_s": None, "step_s": 0.5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no json", "holds no JSON"),
        ("[]", "schema version"),
        ('{"schema_version": 2}', "says 2"),
        ('{"schema_version": 1}', "kind"),
    ],
)
def test_a_damaged_record_is_refused_in_one_line(text: str, said: str) -> None:
    """The file is named, and what is wrong with it."""
    with pytest.raises(BadInput, match=r"a\.json") as caught:
        read_record(text, "a.json")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_impossible_hfu_is_refused() -> None:
    """More work than the hardware can do is a mistake of the measurement."""
    value = json.loads(record().model_dump_json())
    value["measured"]["hfu_frac"] = 1.2
    with pytest.raises(BadInput, match="hfu_frac"):
        read_record(json.dumps(value), "a.json")
