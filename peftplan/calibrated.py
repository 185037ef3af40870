"""A report with a user's own measurements in place of general ones: context, reserved memory, time, power."""

from __future__ import annotations

from peftplan.catalog import GpuRecord, find_gpu
from peftplan.catalog.calibration import Calibration, GpuCalibration
from peftplan.memory.intervals import is_certain, kind_of_run
from peftplan.memory.overheads import context
from peftplan.methods import METHODS
from peftplan.packing import is_packed
from peftplan.report import Cost, GpuFit, Report, Time
from peftplan.request import Request
from peftplan.timing import rescaled


def calibrated(report: Report, calibration: Calibration | None) -> Report:
    """The report as this machine's records refine it; unchanged for another GPU, or without one.

    The interval moves with the figure that it is for.
    """
    asked = report.request.get("gpu")
    gpu = find_gpu(asked) if report.gpu is not None and isinstance(asked, str) else None
    if calibration is None or gpu is None or gpu.key not in calibration.gpus or report.gpu is None:
        return report
    own = calibration.gpus[gpu.key]
    memory = report.memory
    reserved = _reserved(memory.peak_reserved_bytes, memory.peak_allocated_bytes, own)
    outside = 0
    if own.context_bytes is not None and gpu.compute_capability is not None:
        outside = own.context_bytes - context(gpu.compute_capability).middle_bytes
    moved = reserved - memory.peak_reserved_bytes + outside
    interval = memory.interval.model_copy(
        update={
            "low_bytes": max(0, memory.interval.low_bytes + moved),
            "high_bytes": memory.interval.high_bytes + moved,
            "basis": f"{memory.interval.basis}; moved by this machine's calibration",
        }
    )
    found = {
        "peak_reserved_bytes": reserved,
        "device_bytes": memory.device_bytes + moved,
        "interval": interval,
    }
    refined = memory.model_copy(update=found)
    time = _timed(report, own)
    cost = report.cost if time is report.time else _priced(report, time, gpu)
    if cost is not None and own.power_w is not None:
        from peftplan.pricing import with_power  # few answers have a cost

        cost = with_power(cost, report.gpu.num_gpus, own.power_w)
    return report.model_copy(
        update={
            "memory": refined,
            "time": time,
            "cost": cost,
            "gpu": _fit(report.gpu, outside, interval.low_bytes, interval.high_bytes),
            "notes": (*report.notes, _note(calibration, gpu.name, own)),
        }
    )


def _timed(report: Report, own: GpuCalibration) -> Time | None:
    """The step as long as this machine's own steps of the kind were."""
    method = METHODS.get(report.method.kind)
    kind = kind_of_run(method is None or method.frozen_base, is_packed(report.request.get("quant")))
    ratio = own.step_time_ratio(kind)
    return report.time if report.time is None or ratio is None else rescaled(report.time, ratio)


def _priced(report: Report, time: Time | None, gpu: GpuRecord) -> Cost | None:
    """The cost of a run whose steps take that long."""
    if report.cost is None:
        return None
    from peftplan.pricing import check_run, facts_of, run_cost  # few answers have a cost

    method = METHODS.get(report.method.kind)
    facts = facts_of(report.memory, method is None or method.frozen_base)
    return run_cost(check_run(Request(**report.request)), time, gpu, facts)[0]


def _reserved(predicted: int, allocated: int, own: GpuCalibration) -> int:
    """What is reserved is never less than what is allocated."""
    return predicted if own.reserved_ratio is None else max(allocated, round(predicted * own.reserved_ratio))


def _fit(gpu: GpuFit, outside: int, low: int, high: int) -> GpuFit:
    headroom = gpu.headroom_bytes - outside
    return gpu.model_copy(
        update={
            "headroom_bytes": headroom,
            "fits": headroom >= 0,
            "certain": is_certain(headroom >= 0, low, high, gpu.usable_bytes),
        }
    )


def _note(calibration: Calibration, name: str, own: GpuCalibration) -> str:
    said = []
    if own.context_bytes is not None:
        said.append("what the process holds outside the allocator")
    if own.reserved_ratio is not None:
        said.append(f"reserved memory (times {own.reserved_ratio:.3f})")
    if own.step_time_ratios:
        said.append("how long steps take")
    if own.power_w is not None:
        said.append(f"a draw of {own.power_w:.0f} W")
    return (
        f"calibrated by {own.num_runs} runs of this machine on {name} ({calibration.date}): {', '.join(said)}; "
        "`peftplan calibrate --remove` undoes it"
    )
