"""What a GPU achieves: matrix products by type, bandwidth, and what reaches it over a link.

A rate that somebody measured comes first. Without one it is the card's peak times the share of its peak that cards
alike were measured to reach: of the same generation and kind, else of the same kind, else of all. GeForce cards are
a kind of their own: their peaks with fp32 accumulation are half of what the silicon could do, and they reach them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import inf
from statistics import median

from peftplan.catalog import GpuRecord, all_gpus
from peftplan.catalog.matmul_rates import matmul_records
from peftplan.units import GB

FLOATS = ("fp32", "fp16", "bf16")
_LANE_BYTES_PER_S = {"3": 0.985 * GB, "4": 1.969 * GB, "5": 3.938 * GB}  # one direction


@dataclass(frozen=True, slots=True)
class Rates:
    """One GPU's rates, per second; `flop` by the short name of the type that a product computes in.

    `measured` names the types whose rate was measured on this card.
    """

    flop: dict[str, float]
    num_bytes: float
    near_bytes: int  # what two operands may take to be found in the last cache
    scalar_flop: float  # peak of fp32 arithmetic outside the tensor cores
    link_bytes: float  # one direction
    measured: frozenset[str]
    cuda: bool

    def basis(self, dtype: str) -> str:
        """The ground of a type's rate, in words."""
        return "measured" if dtype in self.measured else "from its peak and what cards alike reach"


@lru_cache(maxsize=128)
def rates(gpu: GpuRecord) -> Rates:
    """What a GPU achieves; `flop` lacks a type for which neither a rate nor a peak is known.

    8-bit products run at twice the 16-bit rate, as the tensor cores do. Source: nvidia-tensor-cores.
    """
    found = {dtype: rate for dtype in FLOATS if (rate := _rate(gpu, dtype)) is not None}
    if "fp16" in found:
        found["int8"] = 2 * found["fp16"]
    measured = frozenset(dtype for dtype in FLOATS if _measured(gpu, dtype) is not None)
    return Rates(
        found,
        gpu.mem_bytes_per_s,
        gpu.l2_bytes // 2,
        gpu.fp32_flop_per_s or inf,
        link_bytes_per_s(gpu),
        measured,
        gpu.compute_capability is not None,
    )


def link_bytes_per_s(gpu: GpuRecord) -> float:
    """What a GPU sends to another in one direction: half of its link, or its PCIe lanes [bytes/s].

    Source: pcie.
    """
    if gpu.link is not None and gpu.link_bytes_per_s > 0:
        return gpu.link_bytes_per_s / 2
    return host_bytes_per_s(gpu)


def host_bytes_per_s(gpu: GpuRecord) -> float:
    """What reaches a GPU from its host in one direction, at the rate of its PCIe lanes [bytes/s]. Source: pcie."""
    generation, _, lanes = gpu.pcie.partition("x")
    return _LANE_BYTES_PER_S.get(generation, _LANE_BYTES_PER_S["4"]) * (int(lanes) if lanes.isdigit() else 16)


def peak_flop_per_s(gpu: GpuRecord, dtype: str) -> float | None:
    """The peak that utilisation is measured against; bf16 on a card without it counts as fp32."""
    if dtype == "bf16" and not gpu.bf16_native:
        return gpu.fp32_flop_per_s
    if dtype == "int8":
        return None if gpu.fp16_flop_per_s is None else 2 * gpu.fp16_flop_per_s
    return {"fp32": gpu.fp32_flop_per_s, "fp16": gpu.fp16_flop_per_s, "bf16": gpu.bf16_flop_per_s}.get(dtype)


def _measured(gpu: GpuRecord, dtype: str) -> float | None:
    """A measured rate; both 16-bit types by one measure, where a search over shapes found more than squares do."""
    record = matmul_records().get(gpu.key)
    found = record.of(dtype) if record is not None else None
    best, square = gpu.measured_matmul_bf16_flop_per_s, record.of("bf16") if record is not None else None
    if dtype == "bf16" and best is not None:
        return best
    if dtype == "fp16" and found is not None and best is not None and square is not None:
        return found * best / square
    return found


def _rate(gpu: GpuRecord, dtype: str) -> float | None:
    measured = _measured(gpu, dtype)
    if measured is not None:
        return measured
    if dtype == "bf16" and not gpu.bf16_native:
        fp32 = _rate(gpu, "fp32")
        return None if fp32 is None else fp32 * _share_without_bf16()
    peak = peak_flop_per_s(gpu, dtype)
    if peak is None:
        return None
    return peak * (_own_share(gpu, dtype) or _share_alike(gpu, dtype))


def _own_share(gpu: GpuRecord, dtype: str) -> float | None:
    """The share of its peak that the card was measured to reach in the other 16-bit type."""
    other = {"fp16": "bf16", "bf16": "fp16"}.get(dtype)
    if other is None or not gpu.bf16_native:
        return None
    rate, peak = _measured(gpu, other), peak_flop_per_s(gpu, other)
    return rate / peak if rate and peak else None


def _share_alike(gpu: GpuRecord, dtype: str) -> float:
    """Measured over peak, the median of the cards most alike."""
    known = [
        (peer, rate / peak)
        for peer in all_gpus()
        if (rate := _measured(peer, dtype)) and (peak := peak_flop_per_s(peer, dtype))
    ]
    kind = [one for one in known if _kind(one[0]) == _kind(gpu)]
    generation = [one for one in kind if one[0].architecture == gpu.architecture]
    return median(share for _, share in generation or kind or known)


def _kind(gpu: GpuRecord) -> tuple[str, bool]:
    """Maker, and whether the card is one for games, whose products with fp32 accumulation run at half rate."""
    return gpu.vendor, gpu.name.startswith("GeForce")


@lru_cache(maxsize=1)
def _share_without_bf16() -> float:
    """What products in bf16 reach of the fp32 rate where cards cannot multiply bf16 and convert it."""
    lacking = {gpu.key for gpu in all_gpus() if not gpu.bf16_native}
    shares = [
        record.bf16_flop_per_s / record.fp32_flop_per_s
        for key, record in matmul_records().items()
        if key in lacking and record.bf16_flop_per_s and record.fp32_flop_per_s
    ]
    return median(shares)
