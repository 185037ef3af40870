"""Intervals rest on runs of the same kind, on GPUs of the same generation."""

from __future__ import annotations

from peftplan import Request, estimate
from peftplan.report import Interval


def interval(gpu: str) -> tuple[Interval, int]:
    """The interval of a LoRA run on a card, and what torch reserves there."""
    memory = estimate(Request(model="llama-3.2-1b", gpu=gpu)).memory
    return memory.interval, memory.peak_reserved_bytes


def test_a_generation_that_nobody_measured_is_less_certain() -> None:
    """LoRA runs were measured on Turing: there the interval is narrower than on Hopper, which says why."""
    turing, reserved = interval("t4")
    hopper, _ = interval("h100")
    assert hopper.high_bytes - hopper.low_bytes > (turing.high_bytes - turing.low_bytes) + reserved // 20
    assert "widened" in hopper.basis
    assert "widened" not in turing.basis
