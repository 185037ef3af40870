"""How a step's seconds come about: each part with its work, the rates it was put over, and its source."""

from __future__ import annotations

from collections.abc import Iterator

from peftplan.catalog import GpuRecord, find_gpu
from peftplan.catalog.step_time_fit import step_time_fit
from peftplan.cost.rates import rates
from peftplan.planner import work_of
from peftplan.render.quantities import Quantity
from peftplan.report import Report
from peftplan.request import Request
from peftplan.specs.work import Work
from peftplan.units import BILLION

_GROUP = "How long a step takes"
_TERA = BILLION * 1000
_MEANING = {
    "matmul": "dense products: flop at the rate of their type, and their bytes",
    "attention": "fused attention: flop at the share of that rate that its kernels reach, and its bytes",
    "elementwise": "pointwise operations, casts and copies: bytes at the bandwidth that is reached",
    "reduction": "norms, softmax and the loss: bytes at the bandwidth that is reached",
    "gather": "rows looked up and added by index: bytes at the bandwidth that is reached",
    "dequantise": "packed weights unpacked: their bytes, and a search in a table for every weight",
    "optimizer": "the update: its bytes",
    "launches": "the GPU waiting for the host to launch",
    "communication": "gradients summed over the GPUs, as far as backward does not cover it",
    "transfer": "gradients to the host, as far as backward does not cover them, and weights back, over PCIe",
}
_SOURCE = {
    "matmul": "torch-flop-counter",
    "attention": "flash-attention-2",
    "dequantise": "bnb-lookup",
    "optimizer": "torch-foreach",
    "communication": "torch-ddp",
    "transfer": "torchao-offload",
}


def time_quantities(report: Report) -> Iterator[Quantity]:
    """The parts of a step's time, the largest first, and what they come to."""
    gpu = find_gpu(report.request["gpu"]) if report.gpu is not None else None
    if report.time is None or gpu is None:
        return
    time, worked = report.time, _by_kind(report)
    for name, seconds in sorted(time.terms.items(), key=lambda term: -term[1]):
        formula = _put_in(worked[name], gpu) if name in worked else ""
        yield _quantity(name, seconds, "s", _MEANING.get(name, ""), formula, _SOURCE.get(name, "roofline"))
    yield _quantity("a step", time.step_s, "s", "the sum of the parts")
    covered = f"{time.interval.coverage:.0%} interval; {time.interval.basis}"
    yield _quantity("a step, low", time.interval.low_s, "s", covered)
    yield _quantity("a step, high", time.interval.high_s, "s", covered)
    tokens = f"{time.tokens_per_s * time.step_s:,.0f} tokens / {time.step_s:.4g} s"
    yield _quantity("tokens a second", time.tokens_per_s, "/s", "of all GPUs together", tokens)
    for name, frac, meaning in (
        ("HFU", time.hfu_frac, "what the card computes, over its peak"),
        ("MFU", time.mfu_frac, "the same without what is computed a second time"),
    ):
        if frac is not None:
            yield _quantity(name, 100 * frac, "%", meaning)


def _by_kind(report: Report) -> dict[str, tuple[int, int, int]]:
    """By kind of kernel: flop, bytes and launches of one optimizer step."""
    work: Work = work_of(Request(**report.request))
    found: dict[str, tuple[int, int, int]] = {}
    for kernel in work:
        times = kernel.count * (1 if kernel.phase == "optimizer_step" else report.request["grad_accum"])
        flop, moved, launches = found.get(kernel.kind, (0, 0, 0))
        found[kernel.kind] = (
            flop + kernel.num_flop * times,
            moved + kernel.num_bytes * times,
            launches + times,
        )
    return found


def _put_in(worked: tuple[int, int, int], gpu: GpuRecord) -> str:
    """The work, and the rates of the card: `805 Tflop at 271 Tflop/s, 651 GB at 1,392 GB/s, 2,434 launches`."""
    flop, moved, launches = worked
    reached = rates(gpu).num_bytes * step_time_fit().constants.bandwidth_frac
    text = f"{moved / BILLION:,.4g} GB at {reached / BILLION:,.0f} GB/s in {launches:,} launches"
    if not flop:
        return text
    known = ", ".join(f"{dtype} {rate / _TERA:,.4g}" for dtype, rate in rates(gpu).flop.items())
    return f"{flop / _TERA:,.4g} Tflop (rates in Tflop/s: {known}); {text}"


def _quantity(name: str, value: float, unit: str, meaning: str, formula: str = "", source: str = "") -> Quantity:
    return Quantity(_GROUP, name, value, unit, meaning, formula, source)
