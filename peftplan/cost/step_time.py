"""Seconds of one optimizer step, from its work and what the GPU achieves.

A kernel takes its bytes at the bandwidth and, if it multiplies, its flop at the rate of their type, and no less
than the shortest of kernels. The GPU works through a phase while the host launches it; whichever is later ends it.
Gradients of several GPUs are summed while backward still runs; what outlasts it is waited for.

| term | the seconds of |
|---|---|
| matmul, attention | products, and fused attention: flop over the rate that is reached, and their bytes |
| elementwise, reduction, gather, optimizer | launches that stream: bytes over the bandwidth that is reached |
| dequantise | the same, and a search in a table for every weight: operations over the fp32 peak |
| launches | the GPU waiting for the host |
| communication | the sum of gradients over GPUs, as far as backward does not cover it |
| transfer | gradients to the host, as far as backward does not cover them, and weights back: bytes over PCIe |

Source: roofline.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftplan.catalog import GpuRecord
from peftplan.catalog.step_time_fit import Constants, step_time_fit
from peftplan.cost.rates import Rates, host_bytes_per_s, peak_flop_per_s, rates
from peftplan.parallel.data_parallel import BUCKET
from peftplan.specs.work import KINDS, PHASES, TRANSFER, Work

# Phases in the order in which the host launches them; checkpointing recomputes within backward.
_HOST_PHASES = ("forward", "backward", "optimizer_step")
_HOST_PHASE = {phase: _HOST_PHASES.index("backward" if phase == "recompute" else phase) for phase in PHASES}
_LOOKUP_FRAC = 0.6  # 1.36 to 2.07 times as fast as comparing one after the other. Source: bnb-lookup
_ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_NEAR = frozenset({"elementwise", "reduction", "matmul", "attention"})  # they read what was just written
_BOUNDS = {
    "matmul": "compute",
    "attention": "compute",
    "launches": "host launches",
    "communication": "communication",
    TRANSFER: "copies between device and host",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """How a step's kernels are run, beside what they compute."""

    grad_accum: int = 1
    num_gpus: int = 1
    gradient_bytes: int = 0  # of what trains, summed over GPUs once a step
    by_lookup: bool = True  # packed weights are unpacked by a lookup, as bitsandbytes does since 0.48


@dataclass(frozen=True, slots=True)
class StepTime:
    """One step: its seconds, by part and in all.

    `terms` sum to `step_s`; `host_s` is what the host takes to launch it if it never waits; `dtype` the type in
    which most of the flop are computed.
    """

    step_s: float
    terms: dict[str, float]
    bound: str
    host_s: float
    num_flop: float
    dtype: str
    hfu_frac: float | None
    mfu_frac: float | None


def step_time(work: Work, gpu: GpuRecord, setting: Setting, constants: Constants | None = None) -> StepTime | None:
    """Seconds of a step; None where no rate is known for a type that it computes in.

    Assumes: kernels one after the other on one stream, batches alike, data at hand when it is needed.
    """
    known, found = constants or step_time_fit().constants, rates(gpu)
    read = _read(work, found, known, setting)
    if read is None:
        return None
    terms, busy, launching, flop, again = read
    gpu_s = sum(busy)
    ends, host_s = _in_turn(busy, launching)
    terms["launches"] = ends - gpu_s
    last = busy[1] / setting.grad_accum
    terms["communication"] = _exposed_s(setting, found.link_bytes * known.bandwidth_frac, last)
    terms[TRANSFER] = _transfer_s(work, host_bytes_per_s(gpu) * known.bandwidth_frac, setting, busy[1])
    named = {name: terms[name] for name in (*KINDS, "launches", "communication", TRANSFER) if terms[name] > 0}
    step_s = sum(named.values())
    whole, repeated = _peak_s(flop, gpu), _peak_s(again, gpu)
    return StepTime(
        step_s=step_s,
        terms=named,
        bound=_bound(named),
        host_s=host_s,
        num_flop=float(sum(flop.values())),
        dtype=max(flop, key=lambda name: flop[name], default="bf16"),
        hfu_frac=None if whole is None else whole / step_s,
        mfu_frac=None if whole is None or repeated is None else (whole - repeated) / step_s,
    )


def _peak_s(flop: Mapping[str, int], gpu: GpuRecord) -> float | None:
    """Seconds of these flop at the peak of each type; None where a type has none."""
    seconds = 0.0
    for dtype, count in flop.items():
        peak = peak_flop_per_s(gpu, dtype)
        if peak is None:
            return None
        seconds += count / peak
    return seconds


_Reading = tuple[dict[str, float], list[float], list[float], dict[str, int], dict[str, int]]


def _read(work: Work, found: Rates, known: Constants, setting: Setting) -> _Reading | None:
    """Seconds by kind, the GPU's and the host's by phase, flop by type, and those computed again.

    A product computes while it loads, but its first tiles are loaded and its last ones stored alone: its bytes
    are added, which makes small matrices slower than large ones. What a launch before has just written is found
    in the last cache if it fits there. The host launches backward from C++, the rest from Python.
    """
    terms: dict[str, float] = defaultdict(float)
    busy, launching = [0.0] * len(_HOST_PHASES), [0.0] * len(_HOST_PHASES)
    flop: dict[str, int] = defaultdict(int)
    again: dict[str, int] = defaultdict(int)
    streamed = found.num_bytes * known.bandwidth_frac
    cached, unpack_s = streamed * known.near_speed, known.unpack_flop / found.scalar_flop
    if setting.by_lookup:
        unpack_s *= _LOOKUP_FRAC
    host_s, backward_s = known.host_s, known.host_s * known.backward_frac
    near, floor, reached, rate_of = found.near_bytes, known.floor_s, known.matmul_frac, found.flop
    for phase, kind, _, op, dtype, num_flop, bytes_read, bytes_written, count in work:
        if kind == TRANSFER:
            continue
        place = _HOST_PHASE[phase]
        if place != 2:
            count *= setting.grad_accum
        num_bytes = bytes_read + bytes_written
        seconds = num_bytes / (cached if num_bytes <= near and kind in _NEAR else streamed)
        if kind == "dequantise":
            seconds += bytes_written / _ITEM_BYTES.get(dtype, 2) * unpack_s
        if num_flop:
            rate = rate_of.get(dtype)
            if rate is None:
                return None
            if kind == "attention":
                rate *= known.flash_frac if "flash" in op else known.efficient_frac
            seconds += num_flop / (rate * reached)
            flop[dtype] += num_flop * count
            if phase == "recompute":
                again[dtype] += num_flop * count
        if seconds < floor:
            seconds = floor
        seconds *= count
        terms[kind] += seconds
        busy[place] += seconds
        launching[place] += count * (backward_s if phase == "backward" else host_s)
    return terms, busy, launching, flop, again


def _in_turn(busy: Sequence[float], launching: Sequence[float]) -> tuple[float, float]:
    """When the GPU is done, and when the host: the host runs ahead of the GPU, never behind it.

    A phase ends when the GPU has worked through it, and not before its last launch.
    """
    gpu_end = host_end = 0.0
    for seconds, host_s in zip(busy, launching):
        host_end += host_s
        gpu_end = max(gpu_end + seconds, host_end)
    return gpu_end, host_end


def _exposed_s(setting: Setting, bytes_per_s: float, backward_s: float) -> float:
    """Seconds of a ring all-reduce of the gradients that backward does not cover; the last bucket never is.

    Each GPU sends 2 (n - 1) / n of the gradients' bytes. Source: torch-ddp.
    """
    n = setting.num_gpus
    if n == 1 or not setting.gradient_bytes:
        return 0.0
    whole = 2 * (n - 1) / n * setting.gradient_bytes / bytes_per_s
    last = whole * min(1.0, BUCKET / setting.gradient_bytes)
    return max(whole - backward_s, last)


def _transfer_s(work: Work, bytes_per_s: float, setting: Setting, backward_s: float) -> float:
    """Seconds that copies between device and host add: those of backward run beside it, those of the update do not.

    Assumes: links reach the share of their rate that memory does. Source: torchao-offload.
    """
    moved = {"backward": 0, "optimizer_step": 0}
    for kernel in work:
        if kernel.kind == TRANSFER:
            moved[kernel.phase] += kernel.num_bytes * kernel.count
    beside = moved["backward"] * setting.grad_accum / bytes_per_s
    return max(0.0, beside - backward_s) + moved["optimizer_step"] / bytes_per_s


def _bound(terms: Mapping[str, float]) -> str:
    """What most of the seconds go to, in a word or two."""
    groups: dict[str, float] = defaultdict(float)
    for name, seconds in terms.items():
        groups[_BOUNDS.get(name, "memory bandwidth")] += seconds
    return max(groups, key=lambda name: groups[name], default="nothing")
