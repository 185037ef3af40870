"""From a user's own records to figures of their machine. No torch here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timezone
from statistics import median

from peftplan import planner
from peftplan.catalog import find_gpu
from peftplan.catalog.calibration import Calibration, GpuCalibration, calibration_file
from peftplan.errors import BadInput, NotFound, PeftplanError
from peftplan.measure.files import write_whole
from peftplan.measured import MeasuredRun
from peftplan.memory.intervals import kind_of_run
from peftplan.methods import METHODS
from peftplan.packing import is_packed


def calibrate(runs: Iterable[MeasuredRun], source: str) -> Calibration:
    """What completed runs on GPUs of the catalogue say, by GPU; raises NotFound where there is none."""
    contexts: dict[str, list[int]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    powers: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    counts: dict[str, int] = defaultdict(int)
    for run in runs:
        gpu = find_gpu(run.hardware.gpu)
        if gpu is None or run.kind != "profile" or run.outcome != "completed" or not run.hardware.num_gpus:
            continue
        if run.measured.context_bytes is not None:
            contexts[gpu.key].append(run.measured.context_bytes)
        ratio = _reserved_ratio(run)
        if ratio is not None:
            ratios[gpu.key].append(ratio)
        if run.measured.power_w:
            powers[gpu.key].append(run.measured.power_w)
        if timed := _step_time_ratio(run, gpu.key):
            steps[gpu.key][timed[0]].append(timed[1])
        counts[gpu.key] += any(gpu.key in figures for figures in (contexts, ratios, powers, steps))
    found = {
        key: GpuCalibration(
            num_runs=count,
            context_bytes=round(median(contexts[key])) if contexts[key] else None,
            reserved_ratio=median(ratios[key]) if ratios[key] else None,
            power_w=median(powers[key]) if powers[key] else None,
            step_time_ratios={kind: median(found) for kind, found in steps[key].items()},
        )
        for key, count in counts.items()
        if count
    }
    if not found:
        raise NotFound(
            f"{source} holds no completed run on a GPU of the catalogue; `peftplan profile MODEL` makes one"
        )
    return Calibration(date=datetime.now(tz=timezone.utc).date().isoformat(), source=source, gpus=found)


def store(calibration: Calibration) -> None:
    """Write the user's calibration, whole or not at all."""
    path = calibration_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{path.parent} cannot be made a folder ({error.strerror})") from None
    write_whole(path, calibration.model_dump_json(indent=1).encode() + b"\n", "calibrate")


def remove() -> bool:
    """Take the user's calibration away; whether there was one."""
    try:
        calibration_file().unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise BadInput(f"{calibration_file()} cannot be removed ({error.strerror})") from None
    return True


def _reserved_ratio(run: MeasuredRun) -> float | None:
    if not run.measured.reserved_bytes:
        return None
    try:
        predicted = planner.estimate(run.request).memory.peak_reserved_bytes
    except PeftplanError:  # a model or method that the closed form does not know
        return None
    return run.measured.reserved_bytes / predicted


def _step_time_ratio(run: MeasuredRun, gpu: str) -> tuple[str, float] | None:
    """The kind of a run, and what its step took over what is predicted on that GPU."""
    if not run.measured.step_s:
        return None
    try:
        report = planner.estimate(run.request.model_copy(update={"gpu": gpu}))
    except PeftplanError:
        return None
    if report.time is None:
        return None
    kind = kind_of_run(METHODS[report.method.kind].frozen_base, is_packed(report.request["quant"]))
    return kind, run.measured.step_s / report.time.step_s
