"""Seconds of a merge: bytes over the rates of disk, link and memory, and flop over that of products.

One thing comes after another: the base is read, brought to the GPU, merged, brought back and written. Nothing
overlaps, which is how transformers and peft do it but for reading ahead. Source: roofline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from peftplan.catalog import GpuRecord
from peftplan.cost.rates import host_bytes_per_s, rates
from peftplan.cost.run import DISK_BYTES_PER_S
from peftplan.memory.merge import Launch
from peftplan.merging import answers
from peftplan.merging.options import Merging
from peftplan.units import GB


@dataclass(frozen=True, slots=True)
class Moved:
    """What a way to merge reads, carries and writes, and the launches of the merge itself."""

    read_bytes: int
    to_device_bytes: int
    link_bytes: int  # while it merges, both ways
    to_host_bytes: int
    written_bytes: int
    launches: tuple[Launch, ...]


def rates_of(merging: Merging, gpu: GpuRecord) -> answers.Rates:
    """The rates that were stated, or what is assumed in their place."""
    disk = DISK_BYTES_PER_S if merging.disk_gb_per_s is None else merging.disk_gb_per_s * GB
    link = host_bytes_per_s(gpu) if merging.link_gb_per_s is None else merging.link_gb_per_s * GB
    stated = merging.model_fields_set
    return answers.Rates.model_construct(
        disk_bytes_per_s=disk,
        link_bytes_per_s=link,
        device_bytes_per_s=rates(gpu).num_bytes,
        host_bytes_per_s=merging.host_gb_per_s * GB,
        host_flop_per_s=merging.host_gflop_per_s * GB,
        basis={
            "disk": "stated" if merging.disk_gb_per_s else "assumed: a plain cloud disk (aws-gp3)",
            "link": "stated" if merging.link_gb_per_s else f"assumed: PCIe of {gpu.name}",
            "device": gpu.name,
            "host": "stated" if "host_gb_per_s" in stated else "assumed: two channels of DDR4-3200",
            "host products": "stated" if "host_gflop_per_s" in stated else "assumed",
        },
    )


def merge_time(moved: Moved, found: answers.Rates, gpu: GpuRecord | None) -> answers.MergeTime:
    """Seconds by part; `gpu` is None on the host, where nothing passes a link."""
    if gpu is None:
        merge_s = _launches_s(moved.launches, found.host_bytes_per_s, lambda _: found.host_flop_per_s)
    else:
        flop = rates(gpu).flop
        least = min(flop.values(), default=found.host_flop_per_s)
        merge_s = _launches_s(moved.launches, found.device_bytes_per_s, lambda dtype: flop.get(dtype, least))
        merge_s += moved.link_bytes / found.link_bytes_per_s
    terms = {
        "read": moved.read_bytes / found.disk_bytes_per_s,
        "to the GPU": moved.to_device_bytes / found.link_bytes_per_s,
        "merge": merge_s,
        "to the host": moved.to_host_bytes / found.link_bytes_per_s,
        "write": moved.written_bytes / found.disk_bytes_per_s,
    }
    known = {name: seconds for name, seconds in terms.items() if seconds > 0}
    return answers.MergeTime.model_construct(s=sum(known.values()), terms=known)


def _launches_s(launches: Iterable[Launch], bytes_per_s: float, flop_per_s: Callable[[str], float]) -> float:
    return sum(
        launch.count * (launch.num_bytes / bytes_per_s + launch.num_flop / flop_per_s(launch.dtype))
        for launch in launches
    )
