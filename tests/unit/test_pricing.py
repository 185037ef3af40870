"""A run's hours and dollars from its step: length, prices, what contradicts, and what cannot be known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftplan import pricing
from peftplan.catalog import GpuRecord, find_gpu
from peftplan.catalog import prices as catalogue
from peftplan.errors import BadInput
from peftplan.pricing import Facts, check_run, run_cost, with_power
from peftplan.report import Cost, Time, TimeInterval
from peftplan.request import RUN_FIELDS, Request, states_run

STEP_S = 2.0
TIME = Time(
    step_s=STEP_S,
    tokens_per_s=8192.0,
    bound="matmul",
    terms={"matmul": 1.5, "optimizer": 0.4, "communication": 0.1},
    interval=TimeInterval(low_s=1.6, high_s=2.5, coverage=0.9, basis=""),
    num_flop=1e15,
    hfu_frac=0.5,
    mfu_frac=0.4,
)
FACTS = Facts(frozen_base=True, checkpoint_bytes=0, load_bytes=0)


@pytest.fixture(autouse=True)
def _no_prices_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "prices_file", lambda: tmp_path / "prices.csv")


def gpu(name: str = "h100") -> GpuRecord:
    found = find_gpu(name)
    assert found is not None
    return found


def asked(**fields: Any) -> Request:
    return Request(**{"model": "x", "micro_batch": 4, "seq_len": 1024, "gpu": "h100", **fields})


def cost(facts: Facts = FACTS, **fields: Any) -> Cost:
    found, notes = run_cost(check_run(asked(**fields)), TIME, gpu(), facts)
    assert notes == ()
    assert found is not None
    return found


@pytest.fixture
def data(tmp_path: Path) -> str:
    """A training set of 100 examples of 256 tokens and 100 of 768."""
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps({"num_tokens": size}) + "\n" for size in [256, 768] * 100))
    return str(path)


# ---- length


def test_tokens_are_the_runs_total() -> None:
    """Steps are rounded up; epochs multiply nothing, and that is said."""
    found = cost(tokens=4096 * 100 + 1, price=3.0)
    assert (found.num_steps, found.num_tokens) == (101, 409_601)
    thrice = cost(tokens=4096 * 100, epochs=3, price=3.0)
    assert thrice.num_steps == 100
    assert any("--epochs does not multiply" in note for note in thrice.notes)


def test_several_gpus_and_accumulation_share_the_tokens() -> None:
    """A step takes the batches of all GPUs, and each GPU's hour is paid."""
    found = cost(tokens=4096 * 160, grad_accum=4, gpus=8, price=3.0)
    assert found.num_steps == 5
    assert found.usd == pytest.approx(found.hours * 8 * 3.0)


def test_examples_are_full_sequences_unless_a_file_says_otherwise() -> None:
    """So many passes over so many sequences."""
    found = cost(examples=100, epochs=2.5, price=3.0)
    assert (found.num_steps, found.num_tokens) == (63, 250 * 1024)
    assert any("full sequences of 1,024 tokens" in note for note in found.notes)


def test_a_training_set_is_padded_to_the_longest_of_a_batch(data: str) -> None:
    """Steps count examples; their time scales with what is computed, update and communication apart."""
    found = cost(data=data, epochs=2, price=3.0)
    assert found.data is not None
    assert (found.num_steps, found.num_tokens) == (100, 2 * 100 * (256 + 768))
    assert 512 < found.data.mean_computed_length < 768
    assert found.data.waste_frac == pytest.approx(1 - 512 / found.data.mean_computed_length)
    step_s = 0.5 + 1.5 * found.data.mean_computed_length / 1024
    assert found.parts["training"] == pytest.approx(100 * step_s / 3600)


def test_a_training_set_can_be_packed(data: str) -> None:
    """256 and 768 tokens fill a sequence of 1024 without waste."""
    found = cost(data=data, packing=True, price=3.0)
    assert found.data is not None
    assert (found.num_steps, found.data.waste_frac) == (25, 0.0)
    assert found.parts["training"] == pytest.approx(25 * STEP_S / 3600)


def test_a_file_can_stand_for_a_larger_set(data: str) -> None:
    """--examples and --tokens say how much there is, the file how long it is."""
    assert cost(data=data, examples=2000, price=3.0).num_steps == 500
    assert cost(data=data, tokens=10 * 102_400, price=3.0).num_steps == 500


def test_estimated_tokens_widen_the_hours(tmp_path: Path) -> None:
    """Characters tell tokens within a range, which comes on top of the step's; a stated ratio has none."""
    path = tmp_path / "text.jsonl"
    path.write_text((json.dumps({"text": "a" * 2000}) + "\n") * 400)
    guessed = cost(data=str(path), packing=True, price=3.0)
    stated = cost(data=str(path), packing=True, chars_per_token=4.0, price=3.0)
    assert guessed.hours == pytest.approx(stated.hours)
    assert guessed.hours_low < stated.hours_low
    assert guessed.hours_high > stated.hours_high


def test_truncation_and_broken_lines_are_told(tmp_path: Path) -> None:
    """What is lost at the sequence length, and which lines were skipped."""
    path = tmp_path / "set.jsonl"
    path.write_text('{"num_tokens": 4096}\n{oops\n{"num_tokens": 1024}\n')
    found = cost(data=str(path), price=3.0)
    assert found.data is not None
    assert (found.data.num_truncated, found.data.truncated_frac) == (1, pytest.approx(0.6))
    assert "broken lines, skipped: 1 (line 2)" in found.notes


# ---- parts


def test_parts_sum_to_the_hours() -> None:
    """Start, training, evaluation, checkpoints and interruptions are all there is."""
    facts = Facts(frozen_base=True, checkpoint_bytes=10**9, load_bytes=16 * 10**9)
    found = cost(
        facts, tokens="20M", eval_tokens="1M", eval_every=1000, save_every=500, spot=True, provider="azure"
    )
    assert list(found.parts) == ["start", "training", "evaluation", "checkpoints", "interruptions"]
    assert sum(found.parts.values()) == pytest.approx(found.hours)


def test_low_and_high_join_the_steps_interval_with_the_prices() -> None:
    """The shortest hours at the lowest price, the longest at the highest."""
    found = cost(tokens="10M")
    assert found.hours_low == pytest.approx(found.hours * 1.6 / STEP_S)
    assert found.hours_high == pytest.approx(found.hours * 2.5 / STEP_S)
    assert found.usd_low == pytest.approx(found.hours_low * 1.8)
    assert found.usd_high == pytest.approx(found.hours_high * 12.29)
    assert found.usd_low < found.usd < found.usd_high
    assert found.price_source.startswith("median of")
    assert found.price_date


@pytest.mark.parametrize(("days", "told"), [(30, False), (31, True)])
def test_an_old_price_is_warned_of(monkeypatch: pytest.MonkeyPatch, days: int, told: bool) -> None:
    """A price of the catalogue that is older than a month says so; a price of one's own has no age."""
    monkeypatch.setattr(pricing, "age_days", lambda day: days)
    assert any("days old" in note for note in cost(tokens="10M").notes) is told
    assert not any("days old" in note for note in cost(tokens="10M", price=1.0).notes)


def test_an_own_price_comes_first() -> None:
    """--price stands even where the catalogue has prices of the provider."""
    found = cost(tokens="10M", price=2.0, provider="aws")
    assert (found.usd_per_gpu_hour, found.price_source) == (2.0, "--price")
    assert found.usd == pytest.approx(found.hours * 2.0)


def test_a_provider_and_a_region_narrow_the_prices() -> None:
    """AWS sells an H100 at one price in one region."""
    found = cost(tokens="10M", provider="Amazon", region="us-east-1")
    assert found.usd_per_gpu_hour == pytest.approx(6.88)
    assert found.price_date == "2026-09-25"


def test_spot_takes_longer_and_says_what_it_assumes() -> None:
    """Interruptions add hours; how often they come is an assumption and told as one."""
    facts = Facts(frozen_base=True, checkpoint_bytes=10**9, load_bytes=0)
    steady, spot = cost(facts, tokens="50M", provider="gcp"), cost(facts, tokens="50M", provider="gcp", spot=True)
    assert spot.hours > steady.hours
    assert spot.usd_per_gpu_hour < steady.usd_per_gpu_hour
    assert any("no provider states it" in note for note in spot.notes)


def test_energy_is_that_of_all_gpus() -> None:
    """Rated power times the share that training draws; measured power where there is one."""
    found = cost(tokens="10M", price=1.0, gpus=2)
    assert found.energy_kwh == pytest.approx(0.76 * 0.7 * 2 * found.hours)
    measured = cost(Facts(True, 0, 0, power_w=350.0), tokens="10M", price=1.0)
    assert measured.energy_kwh == pytest.approx(0.35 * measured.hours)


def test_a_measured_draw_replaces_an_assumed_one() -> None:
    """Energy and its note change, hours and dollars do not."""
    assumed = cost(tokens="10M", price=1.0, gpus=2)
    measured = with_power(assumed, 2, 350.0)
    assert measured.energy_kwh == pytest.approx(0.35 * 2 * assumed.hours)
    assert "energy is that of the GPUs, drawing 350 W as measured here" in measured.notes
    assert len(measured.notes) == len(assumed.notes)
    assert (measured.hours, measured.usd) == (assumed.hours, assumed.usd)


# ---- what is not known

UNKNOWN = {
    "no length": ({}, TIME, "h100", "--tokens, --examples or --data states it"),
    "no time": ({"tokens": 5}, None, "h100", "the step's time is not known"),
    "no GPU": ({"tokens": 5}, TIME, None, "--gpu names one"),
    "no price": ({"tokens": "50M"}, TIME, "rtx3070-8", "no price of GeForce RTX 3070 8GB is known"),
    "no spot price": ({"tokens": 5, "spot": True, "provider": "civo"}, TIME, "h100", "no spot price"),
    "never ends": (
        {"tokens": "5B", "spot": True, "save_every": 10**6, "price": 1.0},
        TIME,
        "h100",
        "the run never ends",
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_cost_that_cannot_be_known_says_what_is_missing(kind: str) -> None:
    """No number, and one note with the way to get it."""
    fields, time, name, words = UNKNOWN[kind]
    found, (note,) = run_cost(check_run(asked(**fields)), time, None if name is None else gpu(name), FACTS)
    assert found is None
    assert note.startswith("no cost: ")
    assert words in note


def test_the_hours_are_told_where_only_the_price_is_missing() -> None:
    """A card of one's own has no price, and its run takes as long."""
    _, (note,) = run_cost(asked(tokens="50M"), TIME, gpu("rtx3070-8"), FACTS)
    assert "the run takes 5 h" in note


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tokens and examples": ({"tokens": 5, "examples": 5}, "--tokens and --examples both"),
    "packing without data": ({"packing": True}, "--packing is of a training set"),
    "grouping without data": ({"group_by_length": True}, "--group-by-length is of a training set"),
    "a ratio without data": ({"chars_per_token": 3.0}, "--chars-per-token is of a training set"),
    "packing and grouping": ({"data": "x", "packing": True, "group_by_length": True}, "leave one of the two out"),
    "when without what": ({"eval_every": 5}, "add --eval-tokens"),
    "an unknown provider": ({"provider": "nobody"}, "--provider 'nobody' is unknown; there are aws"),
    "an unknown region": ({"provider": "aws", "region": "mars"}, "--region 'mars' has no price; aws has us-east-1"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_contradicts_is_refused(kind: str) -> None:
    """Each contradiction has its line, with what to leave out or add."""
    fields, words = REFUSED[kind]
    with pytest.raises(BadInput) as refused:
        check_run(asked(**fields))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            (field, value)
            for field in ("tokens", "examples", "eval_tokens")
            for value in (0, -1, 1.5, True, "", "5x")
        ),
        *(("price", value) for value in (0, -1, float("nan"), float("inf"))),
        *(("epochs", value) for value in (0, -1, float("nan"))),
        ("save_every", 0),
        ("chars_per_token", 0),
    ],
)
def test_numbers_that_are_none_are_refused_by_the_request(field: str, value: Any) -> None:
    """Zero tokens, negative and NaN prices, fractions of an example are no run."""
    with pytest.raises(ValueError, match=field):
        asked(**{field: value})


@pytest.mark.parametrize("field", ["tokens", "examples", "eval_tokens", "eval_every", "save_every"])
def test_counts_may_be_written_as_people_do(field: str) -> None:
    """`50M` in Python too."""
    assert getattr(asked(**{field: "50M"}), field) == 50_000_000


def test_a_request_says_whether_it_is_of_a_run() -> None:
    """Nothing of prices is loaded for a request that states no field of the run."""
    assert not states_run(asked())
    for field, value in {"tokens": 5, "price": 1.0, "spot": True, "epochs": 2.0, "region": "x"}.items():
        assert field in RUN_FIELDS
        assert states_run(asked(**{field: value}))
