"""A measured run beside its prediction: every figure of an estimate, with what was measured next to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import BaseModel, ConfigDict

from peftplan.measure.profile.plan import CPU
from peftplan.measured import MeasuredRun
from peftplan.report import Memory, MethodFacts, Report

# How far a run may be from its prediction and still be said to agree with it, by figure.
TOLERANCES = {"peak allocated": 0.03, "peak reserved": 0.04, "device": 0.05}
# Parts that no look at a real allocator can tell apart, under one name.
_PASSING = "activations and temporaries"
_TOGETHER = {
    **dict.fromkeys(("activations", "recomputed activations", "temporaries", "kernel workspaces"), _PASSING),
    **dict.fromkeys(("gradient clipping", "optimizer step temporaries"), _PASSING),
    "blocks not split": "allocator rounding",
}
FIGURES, MOMENTS, RESIDENT, PARTS = "figure", "moment", "resident", "part of the peak"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class ComparedRow(_Part):
    """One figure, predicted and measured; `error_frac` is predicted / measured - 1. Only some are judged."""

    group: str
    name: str
    predicted_bytes: int | None
    measured_bytes: int | None
    error_frac: float | None
    tolerance_frac: float | None = None
    within: bool | None = None


class MeasuredMemory(_Part):
    """What was measured, under the names of the prediction it stands beside; None where it was not."""

    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    device_bytes: int | None
    resident: dict[str, int]
    activations_bytes: int | None
    moments: dict[str, int]
    parts: dict[str, int]


class ProfiledMemory(Memory):
    """Predicted memory, and what was measured."""

    measured: MeasuredMemory


class MeasuredMethod(_Part):
    """What was counted on the real model."""

    num_trainable_params: int | None


class ProfiledMethod(MethodFacts):
    """Predicted counts, and those of the real model."""

    measured: MeasuredMethod


class ProfileReport(Report):
    """An estimate's answer with what was measured beside it; `measured` is the whole record."""

    memory: ProfiledMemory
    method: ProfiledMethod
    engine: str
    device: str
    outcome: str
    within_tolerance: bool
    rows: tuple[ComparedRow, ...]
    measured: MeasuredRun
    record: str | None


def profile_report(
    predicted: Report,
    run: MeasuredRun,
    device: str,
    engine: str,
    record: str | None,
    tolerance: float | None = None,
) -> ProfileReport:
    """Lay a run beside its prediction; one `tolerance` for all that is judged, or each figure's own."""
    rows = tuple(_rows(predicted, run, device, tolerance))
    figures = run.measured
    measured = MeasuredMemory.model_construct(
        peak_allocated_bytes=figures.allocated_bytes,
        peak_reserved_bytes=figures.reserved_bytes,
        device_bytes=figures.device_bytes,
        resident=figures.resident,
        activations_bytes=figures.activations_bytes,
        moments=figures.moments,
        parts=figures.categories,
    )
    method = MeasuredMethod.model_construct(num_trainable_params=figures.num_trainable_params)
    fields = {name: getattr(predicted, name) for name in Report.model_fields}
    memory = {name: getattr(predicted.memory, name) for name in Memory.model_fields}
    facts = {name: getattr(predicted.method, name) for name in MethodFacts.model_fields}
    fields |= {
        "memory": ProfiledMemory.model_construct(**memory, measured=measured),
        "method": ProfiledMethod.model_construct(**facts, measured=method),
        "notes": (*run.notes, *predicted.notes),
    }
    return ProfileReport.model_construct(
        **fields,
        engine=engine,
        device=device,
        outcome=run.outcome,
        within_tolerance=_agrees(predicted, run, rows),
        rows=rows,
        measured=run,
        record=record,
    )


def _agrees(predicted: Report, run: MeasuredRun, rows: tuple[ComparedRow, ...]) -> bool:
    """A run that ended is within tolerance and was not ruled out; one that ran out was not said to fit."""
    if run.outcome == "out_of_memory":
        return not _said_to_fit(predicted, run)
    ruled_out = predicted.gpu is not None and predicted.gpu.certain and not predicted.gpu.fits
    judged = [row.within for row in rows if row.within is not None]
    return run.outcome == "completed" and not ruled_out and bool(judged) and all(judged)


def _said_to_fit(predicted: Report, run: MeasuredRun) -> bool:
    if predicted.gpu is not None:
        return predicted.gpu.fits
    usable = run.hardware.usable_bytes
    return usable is not None and predicted.memory.device_bytes <= usable


def _rows(predicted: Report, run: MeasuredRun, device: str, tolerance: float | None) -> Iterator[ComparedRow]:
    memory, figures = predicted.memory, run.measured
    judged = TOLERANCES if tolerance is None else dict.fromkeys(TOLERANCES, tolerance)
    if run.outcome == "out_of_memory":
        judged = {}
    yield _row(FIGURES, "peak allocated", memory.peak_allocated_bytes, figures.allocated_bytes, judged)
    if device != CPU:
        yield _row(FIGURES, "peak reserved", memory.peak_reserved_bytes, figures.reserved_bytes, judged)
        yield _row(FIGURES, "device", memory.device_bytes, figures.device_bytes, judged)
    for name, num_bytes in memory.moments.items():
        yield _row(MOMENTS, name, num_bytes, figures.moments.get(name))
    resident = memory.resident.model_dump()
    for name, num_bytes in resident.items():
        if num_bytes or figures.resident.get(name):
            yield _row(RESIDENT, name, num_bytes, figures.resident.get(name))
    yield _row(RESIDENT, "activations", memory.activations_bytes, figures.activations_bytes)
    expected = _together({node.name: node.bytes for node in memory.breakdown.children})
    found = _together(figures.categories)
    for name in dict.fromkeys((*expected, *found)):
        yield _row(PARTS, name, expected.get(name, 0), found.get(name, 0) if found else None)


def _row(
    group: str, name: str, predicted: int | None, measured: int | None, judged: Mapping[str, float] | None = None
) -> ComparedRow:
    error = predicted / measured - 1 if predicted is not None and measured else None
    limit = (judged or {}).get(name)
    return ComparedRow.model_construct(
        group=group,
        name=name,
        predicted_bytes=predicted,
        measured_bytes=measured,
        error_frac=error,
        tolerance_frac=limit,
        within=abs(error) <= limit if limit is not None and error is not None else None,
    )


def _together(parts: Mapping[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, num_bytes in parts.items():
        known = _TOGETHER.get(name, name)
        found[known] = found.get(known, 0) + num_bytes
    return found
