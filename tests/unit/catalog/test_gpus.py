"""The catalogue of GPUs: three capacities each, rates with sources, names that find one GPU."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path

import pytest

from peftplan.catalog import GpuRecord, all_gpus, find_gpu, nearest_gpus
from peftplan.catalog.names import normalise
from peftplan.units import GB, GIB, MIB

FACTS = Path(__file__).parents[4] / "shared" / "facts" / "gpus.csv"

every_gpu = pytest.mark.parametrize("gpu", all_gpus(), ids=lambda gpu: gpu.key)


def by_key(key: str) -> GpuRecord:
    return next(gpu for gpu in all_gpus() if gpu.key == key)


@every_gpu
def test_every_record_names_its_sources_and_date(gpu: GpuRecord) -> None:
    """Rates, bandwidth and memory each name a source, and the record its date."""
    assert set(gpu.sources) == {"flop", "bandwidth", "memory"}
    assert all(gpu.sources.values())
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", gpu.date)


@every_gpu
def test_torch_never_sees_more_than_the_driver(gpu: GpuRecord) -> None:
    """Usable is at most the driver's total and at least 97% of it, as on every GPU measured."""
    assert 0.97 * gpu.driver_bytes <= gpu.usable_bytes <= gpu.driver_bytes


@every_gpu
def test_the_driver_shows_about_what_was_sold(gpu: GpuRecord) -> None:
    """The driver's total lies between 87% of the sold size read as 2**30 and all of it."""
    sold_gib_bytes = gpu.sold_bytes // GB * GIB
    assert 0.87 * sold_gib_bytes <= gpu.driver_bytes <= sold_gib_bytes * 1.02


@every_gpu
def test_a_derived_capacity_says_so(gpu: GpuRecord) -> None:
    """The basis begins with `measured` or with `derived` and the rule that was used."""
    kind, _, rule = gpu.capacity_basis.partition(": ")
    assert kind in {"measured", "derived"}
    assert rule


def test_a_4090_has_three_capacities() -> None:
    """24 GB are printed on the box, the driver shows 24564 MiB, torch sees 23.635 GiB."""
    gpu = by_key("rtx4090")
    assert gpu.sold_bytes == 24 * GB
    assert gpu.driver_bytes == 24564 * MIB
    assert gpu.usable_bytes == int(23.635 * GIB)
    assert gpu.capacity_basis == "measured: torch total_memory"


def test_the_same_driver_total_lends_its_share() -> None:
    """An A10 shows the same total as an A10G, so torch is taken to see as much of it."""
    assert by_key("a10").usable_bytes == pytest.approx(by_key("a10g").usable_bytes, abs=1)
    assert by_key("a10").capacity_basis.startswith("derived: ")
    assert "A10G" in by_key("a10").capacity_basis


def test_otherwise_the_smaller_share_of_the_two_nearest_is_taken() -> None:
    """A 3080's share is the smaller of those of the two nearest GDDR Amperes."""
    gpu, lower, upper = by_key("rtx3080-10"), by_key("rtx3060-12"), by_key("a4000")
    shares = [peer.usable_bytes / peer.driver_bytes for peer in (lower, upper)]
    assert gpu.usable_bytes / gpu.driver_bytes == pytest.approx(min(shares), rel=1e-6)


def test_an_unknown_driver_total_comes_from_the_sold_size() -> None:
    """A GB200 has no driver total on record: it is scaled from its sold size, below that size."""
    gpu = by_key("gb200")
    assert "from the sold size" in gpu.capacity_basis
    assert gpu.usable_bytes < gpu.driver_bytes < 186 * GIB


def test_what_users_report_seeing_caps_a_derived_total() -> None:
    """A B300 is sold with 288 GB and reported with 275: the smaller number is used."""
    gpu = by_key("b300")
    assert gpu.driver_bytes == 275 * GB
    assert "report" in gpu.capacity_basis


def test_compute_capability_is_for_cuda_only() -> None:
    """NVIDIA records carry a capability of two numbers, the others none."""
    for gpu in all_gpus():
        assert (gpu.compute_capability is not None) == (gpu.vendor == "NVIDIA"), gpu.key
    assert by_key("h100").compute_capability == (9, 0)
    assert by_key("rtx5090").compute_capability == (12, 0)


def test_bf16_is_native_from_ampere_on() -> None:
    """No GPU before compute capability 8.0 has bf16 units, and every later one has them."""
    for gpu in all_gpus():
        if gpu.compute_capability is not None:
            assert gpu.bf16_native == (gpu.compute_capability >= (8, 0)), gpu.key
        assert gpu.bf16_native == (gpu.bf16_flop_per_s is not None), gpu.key


@every_gpu
def test_a_measured_product_stays_below_its_peak(gpu: GpuRecord) -> None:
    """The best real bf16 matrix product is slower than the peak, and every rate is positive."""
    assert gpu.mem_bytes_per_s > 10**11
    assert gpu.tdp_w > 0
    if gpu.measured_matmul_bf16_flop_per_s is not None:
        assert gpu.bf16_flop_per_s is not None
        assert 0 < gpu.measured_matmul_bf16_flop_per_s < gpu.bf16_flop_per_s


def test_rates_are_in_si_units() -> None:
    """An H100 makes 989 teraflop and moves 3.35 terabytes a second."""
    gpu = by_key("h100")
    assert gpu.bf16_flop_per_s == pytest.approx(989e12)
    assert gpu.mem_bytes_per_s == pytest.approx(3.35e12)


def test_no_name_means_two_gpus() -> None:
    """Keys, names and aliases are unique once case, spaces, dashes and underscores are gone."""
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for gpu in all_gpus():
        spelled = [normalise(name) for name in (gpu.key, gpu.name, *gpu.aliases)]
        assert len(spelled) == len(set(spelled)), gpu.key
        for name in spelled:
            owners[name].add(gpu.key)
    assert not {name: keys for name, keys in owners.items() if len(keys) > 1}
    for gpu in all_gpus():
        for name in (gpu.key, gpu.name, *gpu.aliases):
            assert find_gpu(name) is gpu, name


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("RTX 4090", "rtx4090"),
        ("rtx-4090", "rtx4090"),
        ("rtx4090", "rtx4090"),
        ("4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("A100 80GB", "a100-80"),
        ("a100-80", "a100-80"),
        ("a100", "a100-80"),
        ("A100-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100-80-pcie"),
        ("H100", "h100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("h200", "h200"),
        ("Tesla T4", "t4"),
        ("L40S", "l40s"),
        ("RTX A6000", "a6000"),
        ("RTX 6000 Ada", "rtx6000ada"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_what_people_type_finds_the_gpu(name: str, key: str) -> None:
    """Keys, marketing names and what nvidia-smi prints find their GPU; a bare A100 has 80 GB."""
    gpu = find_gpu(name)
    assert gpu is not None
    assert gpu.key == key


@pytest.mark.parametrize("name", ["", "rtx", "a10000", "rtx6000", "gtx1080"])
def test_an_unknown_name_finds_nothing(name: str) -> None:
    """A name that is not in the catalogue is not guessed at: a Quadro RTX 6000 is not an Ada."""
    assert find_gpu(name) is None


@pytest.mark.parametrize(("typo", "meant"), [("rtx409", "rtx4090"), ("h10", "h100"), ("L40 SS", "l40s")])
def test_a_typo_is_answered_by_what_was_meant(typo: str, meant: str) -> None:
    """The first suggestion is the key that was meant, and there are at most `n`."""
    assert nearest_gpus(typo)[0] == meant
    assert len(nearest_gpus(typo, n=2)) <= 2


@pytest.mark.skipif(not FACTS.exists(), reason="the fact sheets are not beside this checkout")
def test_every_gpu_of_the_fact_sheet_is_carried_over() -> None:
    """Each row of the fact sheet is here, with its capacities and rates."""
    with FACTS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["key"] for row in rows} == {gpu.key for gpu in all_gpus()}
    for row in rows:
        gpu = by_key(row["key"])
        assert gpu.name == row["name"]
        assert gpu.sold_bytes == int(row["mem_sold_gb"]) * GB
        if row["nvidia_smi_total_mib"]:
            assert gpu.driver_bytes == int(row["nvidia_smi_total_mib"]) * MIB
        if row["torch_total_gib"]:
            assert gpu.usable_bytes == int(float(row["torch_total_gib"]) * GIB)
        assert gpu.mem_bytes_per_s == pytest.approx(float(row["mem_bw_gbps"]) * 1e9)
        for column, rate in [
            ("bf16_dense_tflops_fp32acc", gpu.bf16_flop_per_s),
            ("fp16_dense_tflops_fp32acc", gpu.fp16_flop_per_s),
            ("fp32_tflops", gpu.fp32_flop_per_s),
            ("mamf_bf16_tflops", gpu.measured_matmul_bf16_flop_per_s),
        ]:
            assert (rate or 0.0) == pytest.approx(float(row[column] or 0) * 1e12), (gpu.key, column)
