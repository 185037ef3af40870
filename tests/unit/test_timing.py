"""Time as the report tells it: tokens, intervals and their ground, notes, and a user's own records."""

from __future__ import annotations

import pytest

from peftplan import Report, Request, estimate
from peftplan.calibrated import calibrated
from peftplan.catalog import find_gpu
from peftplan.catalog.calibration import Calibration, GpuCalibration
from peftplan.catalog.step_time_fit import step_time_fit
from peftplan.report import Time
from peftplan.timing import ground, rescaled


def report(**options: object) -> Report:
    return estimate(Request(**{"model": "llama-3-8b", "method": "lora", "gpu": "a100-80", **options}))  # type: ignore[arg-type]


def time_of(**options: object) -> Time:
    found = report(**options).time
    assert found is not None
    return found


def test_a_named_gpu_brings_a_time_and_none_brings_none() -> None:
    """Time needs a card: terms that sum to the step, tokens of all micro-batches, an interval around it."""
    assert report(gpu=None).time is None
    found = time_of(micro_batch=2, seq_len=1024, grad_accum=4)
    assert sum(found.terms.values()) == pytest.approx(found.step_s)
    assert found.tokens_per_s == pytest.approx(2 * 1024 * 4 / found.step_s)
    assert found.interval.low_s < found.step_s < found.interval.high_s
    assert found.hfu_frac is not None
    assert found.mfu_frac is not None
    assert 0 < found.mfu_frac < found.hfu_frac < 1


def test_data_parallel_counts_every_gpus_tokens() -> None:
    """Two GPUs take a little longer a step, and nearly twice the tokens."""
    one, two = time_of(), time_of(gpus=2)
    assert one.step_s <= two.step_s < 1.2 * one.step_s
    assert 1.6 * one.tokens_per_s < two.tokens_per_s <= 2 * one.tokens_per_s


@pytest.mark.parametrize(
    ("faster", "slower"),
    [
        ({"checkpointing": False}, {"checkpointing": True}),
        ({"method": "lora"}, {"method": "full"}),
        ({"method": "lora"}, {"method": "qlora"}),
        ({"gpu": "h100"}, {"gpu": "a100-80"}),
        ({"gpu": "a100-80"}, {"gpu": "rtx-4090"}),
        ({"seq_len": 1024}, {"seq_len": 2048}),
        ({"targets": "attention"}, {"targets": "all-linear"}),
        ({"precision": "bf16"}, {"precision": "fp32", "base_dtype": "fp32"}),
        ({"method": "full", "optimizer": "adamw-fused"}, {"method": "full", "optimizer": "adamw"}),
    ],
)
def test_time_moves_as_people_know_it_to(faster: dict[str, object], slower: dict[str, object]) -> None:
    """Checkpointing, training everything, packed weights, slower cards and longer rows cost time."""
    assert time_of(**faster).step_s < time_of(**slower).step_s


def test_checkpointing_costs_a_fifth_to_a_third_of_the_speed() -> None:
    """Published: -21 % tokens a second for full fine-tuning; a forward pass more for adapters."""
    for method in ("full", "lora"):
        kept = time_of(method=method, checkpointing=False, micro_batch=4).tokens_per_s
        lost = 1 - time_of(method=method, micro_batch=4).tokens_per_s / kept
        assert 0.15 < lost < 0.35, method


def test_intervals_are_wider_where_less_was_measured() -> None:
    """A card with measured steps, one without, one without a measured rate, one that is no CUDA device."""
    fit = step_time_fit()
    halves = {}
    for name in ("a100-80", "h100", "rtx4080", "mi300x"):
        record = find_gpu(name)
        assert record is not None
        halves[name] = ground(record, "bf16")
    assert halves["a100-80"].half_frac == fit.seen["a100-80"].half_frac < halves["h100"].half_frac
    assert halves["h100"].half_frac == fit.unseen.half_frac
    assert halves["rtx4080"].half_frac == halves["mi300x"].half_frac == fit.widening * fit.unseen.half_frac
    assert "not measured" in halves["rtx4080"].basis
    assert "no CUDA" in halves["mi300x"].basis
    assert {one.coverage for one in halves.values()} == {0.9}


def test_a_step_that_waits_for_its_host_is_less_certain() -> None:
    """A tiny step on a measured card has the spread of cards left out, and says that the host matters."""
    tiny = time_of(micro_batch=1, seq_len=64)
    assert tiny.bound == "host launches"
    assert "the host takes much of the step" in tiny.interval.basis
    assert tiny.interval.high_s / tiny.step_s > 1 + step_time_fit().seen["a100-80"].half_frac


def test_older_bitsandbytes_unpack_slower() -> None:
    """Before 0.48 4-bit weights were compared one after the other."""
    older, newer = (time_of(method="qlora", bitsandbytes=release) for release in ("0.47", "0.48"))
    assert older.terms["dequantise"] > 1.3 * newer.terms["dequantise"]


def test_a_card_without_bf16_is_said_to_convert_it() -> None:
    """bf16 on a T4 is answered, slowly, with a note; fp16 has none."""
    slow, fast = report(gpu="t4"), report(gpu="t4", precision="fp16-mixed", base_dtype="fp16")
    assert slow.time is not None
    assert fast.time is not None
    assert slow.time.step_s > 3 * fast.time.step_s
    assert any("cannot multiply in bf16" in note for note in slow.notes)
    assert not any("cannot multiply in bf16" in note for note in fast.notes)


def test_a_card_of_unknown_rates_has_a_note_in_place_of_a_time() -> None:
    """Gaudi2 states no fp32 rate: no time, and the note says why."""
    answer = report(gpu="gaudi2", method="full", precision="fp32", base_dtype=None)
    assert answer.time is None
    assert any("no time is predicted" in note for note in answer.notes)


def test_rescaling_moves_every_part() -> None:
    """Twice as long: half the tokens, half the utilisation, terms that sum, an interval of the same reach."""
    one = time_of()
    two = rescaled(one, 2.0)
    assert sum(two.terms.values()) == pytest.approx(two.step_s) == pytest.approx(2 * one.step_s)
    assert two.tokens_per_s == pytest.approx(one.tokens_per_s / 2)
    assert two.interval.high_s / two.step_s == pytest.approx(one.interval.high_s / one.step_s)
    assert two.hfu_frac == pytest.approx((one.hfu_frac or 0) / 2)


def test_a_users_own_steps_scale_others_of_their_kind() -> None:
    """A ratio of adapters is theirs; a kind without its own takes the others'; other cards are left alone."""
    own = GpuCalibration(num_runs=3, step_time_ratios={"adapters": 1.25, "full": 0.9})
    calibration = Calibration(date="2026-11-22", source="records", gpus={"a100-80": own})
    for method, ratio in (("lora", 1.25), ("full", 0.9), ("qlora", 1.075)):
        plain = report(method=method)
        refined = calibrated(plain, calibration)
        assert plain.time is not None
        assert refined.time is not None
        assert refined.time.step_s == pytest.approx(ratio * plain.time.step_s)
        assert "this machine" in refined.time.interval.basis
    other = report(gpu="h100")
    assert calibrated(other, calibration).time == other.time


def test_a_users_own_steps_change_the_cost() -> None:
    """Hours and dollars follow the time that they are made of."""
    calibration = Calibration(
        date="2026-11-22",
        source="records",
        gpus={"a100-80": GpuCalibration(num_runs=1, step_time_ratios={"adapters": 2.0})},
    )
    plain = report(tokens=10_000_000)
    refined = calibrated(plain, calibration)
    assert plain.cost is not None
    assert refined.cost is not None
    assert 1.8 < refined.cost.hours / plain.cost.hours < 2.0
    assert refined.cost.usd > plain.cost.usd
