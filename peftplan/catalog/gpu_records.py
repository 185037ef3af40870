"""The GPUs peftplan knows: three capacities each, rates, and where every number comes from.

A capacity is one of three numbers. *Sold* is printed on the box, *driver* is what nvidia-smi
shows, *usable* is what torch can hand out. They differ by gigabytes: a 4090 is sold with 24 GB,
its driver shows 24564 MiB, torch sees 23.635 GiB. Whatever is missing is derived below from the
nearest GPUs where it is known, and says so in `capacity_basis`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from peftplan.catalog.names import nearest, normalise
from peftplan.units import GB, GIB, MIB

_FILE = Path(__file__).with_name("gpus.json")
_TERA = 10**12

# Words that drivers and shops put before a GPU's name and people leave out.
_VENDOR_WORDS = ("nvidia", "amd", "intel", "geforce", "tesla", "instinct")

_Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GpuRecord:
    """One GPU as one device: of a board with two or four dies, a single die.

    Rates are peaks of dense matrix products accumulated in fp32, per second; `measured_matmul`
    is the best that a real bf16 matrix product was seen to reach. None means unknown or absent.
    """

    key: str
    name: str
    aliases: tuple[str, ...]
    vendor: str
    architecture: str
    compute_capability: tuple[int, int] | None  # None where there is no CUDA
    memory_kind: str  # "HBM" or "GDDR"
    sold_bytes: int
    driver_bytes: int
    usable_bytes: int
    capacity_basis: str
    mem_bytes_per_s: float
    l2_bytes: int  # the last cache before the memory
    bf16_flop_per_s: float | None
    fp16_flop_per_s: float | None
    fp32_flop_per_s: float | None
    measured_matmul_bf16_flop_per_s: float | None
    bf16_native: bool
    link: str | None
    link_bytes_per_s: float  # both directions together
    pcie: str  # generation x lanes
    tdp_w: float
    ecc: str
    sources: Mapping[str, str] = field(hash=False)
    note: str
    date: str

    @property
    def switched(self) -> bool:
        """Whether each GPU of a machine reaches every other over NVLink, not over PCIe or a bridge of two."""
        return self.link is not None and self.link.startswith("NVLink") and "bridge" not in self.link


@lru_cache(maxsize=1)
def all_gpus() -> tuple[GpuRecord, ...]:
    """Every record; read once, on first use."""
    raws: list[dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return tuple(_record(raw, raws) for raw in raws)


def find_gpu(name: str) -> GpuRecord | None:
    """The GPU called `name`: its key, its name, or an alias, with or without the vendor's words."""
    return _names().get(_bare(name))


def nearest_gpus(name: str, n: int = 3) -> list[str]:
    """The keys of the GPUs whose names are most like `name`, best first."""
    names = _names()
    keys = dict.fromkeys(names[spelling].key for spelling in nearest(_bare(name), names))
    return list(keys)[:n]


@lru_cache(maxsize=1)
def _names() -> dict[str, GpuRecord]:
    return {_bare(name): record for record in all_gpus() for name in (record.key, record.name, *record.aliases)}


def _bare(name: str) -> str:
    bare = normalise(name)
    for word in _VENDOR_WORDS:
        bare = bare.removeprefix(word)
    return bare


def _record(raw: _Raw, raws: Sequence[_Raw]) -> GpuRecord:
    driver_bytes, usable_bytes, basis = _capacities(raw, raws)
    return GpuRecord(
        key=raw["key"],
        name=raw["name"],
        aliases=tuple(raw["aliases"]),
        vendor=raw["vendor"],
        architecture=raw["architecture"],
        compute_capability=_compute_capability(raw["compute_capability"]),
        memory_kind=raw["memory_kind"],
        sold_bytes=round(raw["sold_gb"] * GB),
        driver_bytes=driver_bytes,
        usable_bytes=usable_bytes,
        capacity_basis=basis,
        mem_bytes_per_s=float(raw["mem_bandwidth_gb_per_s"]) * GB,
        l2_bytes=round(raw["l2_mib"] * MIB),
        bf16_flop_per_s=_flop_per_s(raw["bf16_dense_tflop_per_s"]),
        fp16_flop_per_s=_flop_per_s(raw["fp16_dense_tflop_per_s"]),
        fp32_flop_per_s=_flop_per_s(raw["fp32_tflop_per_s"]),
        measured_matmul_bf16_flop_per_s=_flop_per_s(raw["measured_matmul_bf16_tflop_per_s"]),
        bf16_native=raw["bf16_native"],
        link=raw["link"],
        link_bytes_per_s=float(raw["link_gb_per_s"]) * GB,
        pcie=raw["pcie"],
        tdp_w=float(raw["tdp_w"]),
        ecc=raw["ecc"],
        sources=MappingProxyType(raw["sources"]),
        note=raw["note"],
        date=raw["date"],
    )


def _flop_per_s(tflop_per_s: float | None) -> float | None:
    return None if tflop_per_s is None else tflop_per_s * _TERA


def _compute_capability(text: str | None) -> tuple[int, int] | None:
    # AMD's targets (gfx942) stand in the same column of the data.
    major, dot, minor = (text or "").partition(".")
    return (int(major), int(minor)) if dot else None


def _capacities(raw: _Raw, raws: Sequence[_Raw]) -> tuple[int, int, str]:
    """(driver bytes, usable bytes, what they rest on); usable is never above driver.

    A derived share is the smaller of those of the two nearest GPUs, so that a run is sooner
    called too big by mistake than called fitting by mistake.
    """
    if raw["usable_gib"] is not None:
        usable_bytes = int(raw["usable_gib"] * GIB)
        if raw["driver_mib"] is not None:
            return raw["driver_mib"] * MIB, usable_bytes, "measured: torch total_memory"
        basis = "measured: torch total_memory; driver total unknown, taken as the same"
        return usable_bytes, usable_bytes, basis

    driver_bytes, driver_basis = _driver_bytes(raw, raws)
    share, share_basis = _usable_share(raw, raws, driver_bytes)
    return driver_bytes, int(driver_bytes * share), f"derived: {driver_basis}{share_basis}"


def _driver_bytes(raw: _Raw, raws: Sequence[_Raw]) -> tuple[int, str]:
    if raw["driver_mib"] is not None:
        return raw["driver_mib"] * MIB, ""
    peers = _nearest_peers(
        [peer for peer in raws if _visible_mib(peer) is not None and _alike(peer, raw)],
        lambda peer: abs(peer["sold_gb"] - raw["sold_gb"]),
    )
    if peers:
        mib_per_sold_gb = min((_visible_mib(peer) or 0.0) / peer["sold_gb"] for peer in peers)
        driver_bytes = int(raw["sold_gb"] * mib_per_sold_gb * MIB)
        basis = f"driver total from the sold size, as on {_named(peers)}; "
    else:
        driver_bytes = round(raw["sold_gb"] * GB)
        basis = "driver total is the sold size at 10^9 bytes per GB, its smallest reading; "
    if "reported_gb" in raw and round(raw["reported_gb"] * GB) < driver_bytes:
        # Users name a number without its unit; 10^9 is the smallest it can mean.
        driver_bytes = round(raw["reported_gb"] * GB)
        basis = f"driver total as users report it, {raw['reported_gb']} GB of 10^9 bytes; "
    return driver_bytes, basis


def _usable_share(raw: _Raw, raws: Sequence[_Raw], driver_bytes: int) -> tuple[float, str]:
    """The share of the driver's total that torch sees, and whose share it is."""
    known = [
        peer
        for peer in raws
        if peer["usable_gib"] is not None and peer["driver_mib"] is not None and _alike(peer, raw)
    ]
    same_generation = [peer for peer in known if peer["architecture"] == raw["architecture"]]
    peers = _nearest_peers(
        same_generation or known,
        lambda peer: abs(peer["driver_mib"] * MIB - driver_bytes),
    )
    if not peers:
        return 1.0, "usable taken as the same"
    share = min(peer["usable_gib"] * GIB / (peer["driver_mib"] * MIB) for peer in peers)
    return share, f"usable is {share:.2%} of the driver total, as on {_named(peers)}"


def _alike(peer: _Raw, raw: _Raw) -> bool:
    # What a driver keeps back differs by memory kind (GDDR pays for ECC, HBM does not) more than
    # it does between generations.
    return bool(peer["vendor"] == raw["vendor"] and peer["memory_kind"] == raw["memory_kind"])


def _visible_mib(raw: _Raw) -> float | None:
    """What the driver shows or, where only that is known, what torch sees."""
    if raw["driver_mib"] is not None:
        return float(raw["driver_mib"])
    return None if raw["usable_gib"] is None else raw["usable_gib"] * GIB / MIB


def _nearest_peers(peers: Sequence[_Raw], distance: Callable[[_Raw], float]) -> list[_Raw]:
    """The peers at distance zero if there are any, else the two nearest."""
    ranked = sorted(peers, key=distance)
    exact = [peer for peer in ranked if distance(peer) == 0]
    return exact or ranked[:2]


def _named(peers: Sequence[_Raw]) -> str:
    return " and ".join(peer["name"] for peer in peers)
