"""Seconds of a run: its parts, what interruptions add, when it never ends, and the energy it takes."""

from __future__ import annotations

from math import sqrt

import pytest

from peftplan.cost.run import (
    DISK_BYTES_PER_S,
    POWER_FRAC,
    RESTART_S,
    Run,
    best_save_every,
    energy_kwh,
    forward_share,
    run_seconds,
)


def test_steps_times_seconds_is_training() -> None:
    """A run of nothing but steps has one part."""
    assert run_seconds(Run(num_steps=100), 2.0) == {"training": 200.0}


def test_shorter_batches_shorten_what_depends_on_tokens() -> None:
    """The update takes as long for half of the tokens; the rest takes half."""
    parts = run_seconds(Run(num_steps=10, computed_frac=0.5, fixed_s=0.4), 2.4)
    assert parts["training"] == pytest.approx(10 * (0.4 + 1.0))


def test_more_tokens_than_counted_take_longer() -> None:
    """Where tokens are estimated, their range is a range of the time that depends on them."""
    run = Run(num_steps=10, fixed_s=0.5)
    assert run_seconds(run, 2.5, 1.2)["training"] == pytest.approx(10 * (0.5 + 2.4))


def test_evaluation_is_the_forward_pass_over_its_tokens() -> None:
    """Three evaluations of five steps' tokens, a third of a step without its update each."""
    run = Run(num_steps=1, num_evals=3, eval_steps=5, forward_frac=1 / 3, fixed_s=1.0)
    assert run_seconds(run, 4.0)["evaluation"] == pytest.approx(3 * 5 * 3.0 / 3)


@pytest.mark.parametrize(("save_every", "saves"), [(None, 1), (10, 10), (30, 4), (1000, 1)])
def test_checkpoints_pass_through_the_disk(save_every: int | None, saves: int) -> None:
    """One at the end, or one every so many steps, the last one included."""
    run = Run(
        num_steps=100, save_every=save_every, checkpoint_bytes=DISK_BYTES_PER_S * 3, load_bytes=DISK_BYTES_PER_S
    )
    parts = run_seconds(run, 1.0)
    assert (parts["start"], parts["checkpoints"]) == (1.0, 3.0 * saves)


def test_interruptions_lose_a_restart_and_half_of_what_was_not_saved() -> None:
    """T' = T / (1 - L / M) with L = restart + half of the time between checkpoints."""
    run = Run(num_steps=7200, save_every=1800)
    lost, lifetime = RESTART_S + 900, 36_000.0
    parts = run_seconds(run, 1.0, lifetime_s=lifetime)
    assert sum(parts.values()) == pytest.approx(7200 / (1 - lost / lifetime))


def test_a_run_that_loses_more_than_it_does_never_ends() -> None:
    """Between two interruptions less is done than is lost: that is said, not answered with a number."""
    with pytest.raises(ValueError, match=r"an interruption every 1.0 h loses"):
        run_seconds(Run(num_steps=100_000), 1.0, lifetime_s=3600)


def test_the_best_interval_is_where_neither_loss_is_larger() -> None:
    """Young's interval: sqrt(2 save M), and the total is no less a tenth of it away on either side."""
    run = Run(num_steps=100_000, checkpoint_bytes=DISK_BYTES_PER_S * 20)
    lifetime = 36_000.0
    best = best_save_every(run, 1.0, lifetime)
    assert best == int(sqrt(2 * 20 * lifetime))

    def total(every: int) -> float:
        changed = Run(num_steps=100_000, checkpoint_bytes=run.checkpoint_bytes, save_every=every)
        return sum(run_seconds(changed, 1.0, lifetime_s=lifetime).values())

    assert total(best) <= min(total(best * 2), total(best // 2))


@pytest.mark.parametrize(
    ("frozen", "checkpointing", "share"),
    [(False, False, 1 / 3), (False, True, 1 / 4), (True, False, 1 / 2), (True, True, 1 / 3)],
)
def test_the_forward_share_counts_flop(frozen: bool, checkpointing: bool, share: float) -> None:
    """2 of 6, of 8 with recomputation, of 4 and 6 where the weights are frozen."""
    assert forward_share(frozen, checkpointing) == pytest.approx(share)


def test_energy_is_measured_power_first() -> None:
    """Kilowatt-hours of all GPUs, by their measured draw or by a share of their rating."""
    assert energy_kwh(700, 8, 10, power_w=500) == pytest.approx(40.0)
    assert energy_kwh(700, 8, 10) == pytest.approx(56 * POWER_FRAC)
