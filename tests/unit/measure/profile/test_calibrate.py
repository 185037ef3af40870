"""A user's own steps become ratios of their kind."""

from __future__ import annotations

import pytest

from peftplan import Request, estimate
from peftplan.catalog.calibration import GpuCalibration
from peftplan.evidence.scoring import Evidence, score
from peftplan.measure.profile.calibrate import calibrate
from peftplan.measured import Figures, Hardware, MeasuredRun


def record(ratio: float, **options: object) -> MeasuredRun:
    """A run on an A100 whose step took so many times what is predicted."""
    request = Request(model="llama-3-8b", gpu="a100-80", seq_len=1024, **options)  # type: ignore[arg-type]
    time = estimate(request).time
    assert time is not None
    return MeasuredRun(
        kind="profile",
        source="profile",
        date="2026-11-22",
        request=request,
        measured=Figures(step_s=ratio * time.step_s),
        hardware=Hardware(gpu="NVIDIA A100-SXM4-80GB"),
    )


def test_steps_of_each_kind_have_their_own_ratio() -> None:
    """The median of measured over predicted, for full fine-tuning, adapters and packed bases apart."""
    runs = [record(1.2, method="lora"), record(1.4, method="lora", rank=64), record(0.9, method="qlora")]
    (own,) = calibrate(runs, "records").gpus.values()
    assert own.num_runs == 3
    assert own.step_time_ratios == {"adapters": pytest.approx(1.3), "packed": pytest.approx(0.9)}


def test_a_kind_that_was_not_measured_takes_the_others() -> None:
    """The card and its host are the same; without any measured step there is no ratio."""
    own = GpuCalibration(num_runs=2, step_time_ratios={"adapters": 1.3, "packed": 0.9})
    assert own.step_time_ratio("adapters") == 1.3
    assert own.step_time_ratio("full") == pytest.approx(1.1)
    assert GpuCalibration(num_runs=1).step_time_ratio("full") is None


def test_a_records_step_is_scored() -> None:
    """`validate` holds a record's step against its prediction, with the interval of the answer."""
    (found,) = score(Evidence(records=(("a.json", record(1.05, method="lora")),)), ["closed"])
    assert found.used, found.reason
    assert found.metric == "step_s"
    assert found.error_frac == pytest.approx(1 / 1.05 - 1)
    assert found.inside_interval


def test_a_step_faster_than_the_card_can_compute_is_set_aside() -> None:
    """A record that implies more than the peak is no measurement of that card."""
    (found,) = score(Evidence(records=(("a.json", record(0.1, method="lora")),)), ["closed"])
    assert not found.used
    assert "no card computes above its peak" in found.reason
