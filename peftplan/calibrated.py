"""A report with a user's own measurements in place of general ones: context, and the ratio of reserved memory."""

from __future__ import annotations

from peftplan.catalog import find_gpu
from peftplan.catalog.calibration import Calibration, GpuCalibration
from peftplan.memory.intervals import is_certain
from peftplan.memory.overheads import context
from peftplan.report import GpuFit, Report


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
    return report.model_copy(
        update={
            "memory": refined,
            "gpu": _fit(report.gpu, outside, interval.low_bytes, interval.high_bytes),
            "notes": (*report.notes, _note(calibration, gpu.name, own)),
        }
    )


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
    return (
        f"calibrated by {own.num_runs} runs of this machine on {name} ({calibration.date}): {' and '.join(said)}; "
        "`peftplan calibrate --remove` undoes it"
    )
