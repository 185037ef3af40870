"""What GPUs achieve: measured rates first, else their peaks as cards alike reach them."""

from __future__ import annotations

import pytest

from peftplan.catalog import GpuRecord, all_gpus, find_gpu
from peftplan.catalog.matmul_rates import matmul_records
from peftplan.cost.rates import link_bytes_per_s, peak_flop_per_s, rates


def gpu(name: str) -> GpuRecord:
    record = find_gpu(name)
    assert record is not None
    return record


def test_a_measured_rate_comes_first() -> None:
    """An A100's bf16 products run at what a search over shapes found, and the answer says that it was measured."""
    found = rates(gpu("a100-80"))
    assert found.flop["bf16"] == 271.2e12
    assert found.basis("bf16") == "measured"


def test_geforce_cards_reach_the_half_rate_and_no_more() -> None:
    """A 4090 multiplies bf16 at about 165 TFLOP/s: fp32 accumulation halves what its tensor cores could do."""
    found = rates(gpu("rtx-4090"))
    assert 150e12 < found.flop["bf16"] < 180e12
    # the same silicon without the halving
    assert rates(gpu("l40s")).flop["bf16"] > 1.5 * found.flop["bf16"]


@pytest.mark.parametrize("name", ["t4", "v100-32", "rtx2080ti", "p100"])
def test_cards_without_bf16_multiply_it_slower_than_fp32(name: str) -> None:
    """Where bf16 is converted, its products are slower than fp32 ones, and far slower than fp16 ones."""
    found = rates(gpu(name))
    assert found.flop["bf16"] < found.flop["fp32"] < found.flop["fp16"]
    assert peak_flop_per_s(gpu(name), "bf16") == peak_flop_per_s(gpu(name), "fp32")


def test_an_unmeasured_card_reaches_the_share_of_cards_alike() -> None:
    """A 4080 reaches of its peak what the 4090 does; an L40, no GeForce card, what L4 and L40S do."""
    assert "bf16" not in rates(gpu("rtx4080")).measured
    share = rates(gpu("rtx4090")).flop["bf16"] / 165.2e12
    assert rates(gpu("rtx4080")).flop["bf16"] == pytest.approx(share * 97.5e12)
    assert 0.45 < rates(gpu("l40")).flop["bf16"] / 181e12 < 0.8


@pytest.mark.parametrize("record", all_gpus(), ids=lambda record: record.key)
def test_no_card_computes_far_above_its_peak(record: GpuRecord) -> None:
    """Rates stay within 15 % above the peak (boost clocks), and every card has a 16-bit rate and a bandwidth."""
    found = rates(record)
    assert found.flop["fp16"] > 0
    assert found.num_bytes > 0
    for dtype in ("fp32", "fp16", "bf16"):
        peak = peak_flop_per_s(record, dtype)
        if peak is not None:
            assert found.flop[dtype] <= 1.15 * peak, dtype


def test_every_measured_rate_names_a_card_its_source_and_day() -> None:
    """A record of a matrix rate belongs to a card of the catalogue."""
    for key, record in matmul_records().items():
        assert find_gpu(key) is not None
        assert record.source
        assert record.date[:3] == "202"


@pytest.mark.parametrize(
    ("name", "low", "high"), [("a100-80", 299e9, 301e9), ("t4", 15e9, 16e9), ("h100", 449e9, 451e9)]
)
def test_a_link_is_one_direction_of_nvlink_or_the_pcie_lanes(name: str, low: float, high: float) -> None:
    """NVLink's figure counts both directions; a card without one sends over PCIe."""
    assert low <= link_bytes_per_s(gpu(name)) <= high
