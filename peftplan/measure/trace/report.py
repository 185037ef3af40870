"""A recording as a report: the keys of an estimate, and what only a trace knows.

Figures are those of the last step, in which optimizer states exist; what is reserved is the whole run's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict

from peftplan.breakdown import Node
from peftplan.catalog import GpuRecord
from peftplan.errors import BadInput
from peftplan.measure.trace.account import activations_bytes, breakdown, moments, peak_event, resident
from peftplan.measure.trace.analysis import Storage, Timeline, by_category, largest, timeline, tree
from peftplan.measure.trace.plan import TracePlan
from peftplan.measure.trace.recording import Recording
from peftplan.measure.trace.replay import Replay, least_capacity_bytes, replay
from peftplan.memory.intervals import Bounds, around_device, is_certain, kind_of_run
from peftplan.methods import Method
from peftplan.notes import MATH_ATTENTION, PADDING, gpu_notes, length_notes, recipe_note
from peftplan.planner import Settled, cost_of, settle, step_time_of
from peftplan.report import (
    SCHEMA_VERSION,
    GpuFit,
    Interval,
    LoadBytes,
    Memory,
    MethodFacts,
    ModelFacts,
    Report,
    ResidentBytes,
)
from peftplan.resolve import Plan, outside_allocator
from peftplan.styles import style_notes
from peftplan.versions import LIBRARIES, installed_notes, installed_versions, versions_of

TIMELINE_POINTS = 400
MODES = {"cuda": "fake-cuda", "meta": "meta", "cpu": "fake-cpu"}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class PhasePeak(_Part):
    """The most allocated within one phase of one step, and the storage whose birth made it so."""

    name: str
    step: int
    peak_allocated_bytes: int
    module: str
    operation: str


class Totals(_Part):
    """The same run counted in five ways, each the most at any time of its last step or of the whole run.

    Requested by tensors; allocated, each rounded up to 512; in whole blocks, rests included; reserved with
    torch's default settings, and with expandable segments.
    """

    requested_bytes: int
    allocated_bytes: int
    blocks_bytes: int
    reserved_bytes: int
    reserved_expandable_bytes: int


class Seconds(_Part):
    """How long the child process took to build the model, and to run the steps."""

    build_s: float
    trace_s: float


class TraceReport(Report):
    """A traced run's answer."""

    engine: str = "trace"
    mode: str
    totals: Totals
    phases: tuple[PhasePeak, ...]
    largest: tuple[Storage, ...]
    categories: dict[str, int]
    tree: Node
    timeline: Timeline
    attention_kernels: tuple[str, ...]
    libraries: dict[str, str]
    seconds: Seconds


def trace_report(plan: TracePlan, recording: Recording, top: int = 10) -> TraceReport:
    """The answer that a plan's recording gives, with the `top` largest storages of the peak."""
    replayed = replay(recording)
    alike = closed_form(plan, recording.facts["libraries"])
    closed = alike[1] if alike else None
    facts = recording.facts
    peak_moment, at = peak_event(recording, replayed)
    num_adapter = facts["num_adapter_params"]
    memory = _memory(plan, recording, replayed, closed, peak_moment, at)
    gpu = plan.settings.gpu
    time = step_time_of(*alike) if alike else None
    cost, cost_notes = cost_of(alike[0], memory, time) if alike else (None, ())
    return TraceReport.model_construct(
        schema_version=SCHEMA_VERSION,
        request={**plan.request.model_dump(), **_releases(facts)},
        model=ModelFacts.model_construct(
            id=plan.found.id,
            architecture=closed.model.family if closed else str(plan.job.config.get("model_type", "")),
            num_params=facts["num_params"],
            num_active_params=facts["num_params"] - facts.get("num_inactive_params", 0),
        ),
        method=MethodFacts.model_construct(
            kind=plan.method.name,
            num_trainable_params=facts["num_trainable_params"],
            trainable_frac=facts["num_trainable_params"] / (facts["num_params"] + num_adapter),
            adapter_checkpoint_bytes=facts["adapter_checkpoint_bytes"],
        ),
        memory=memory,
        gpu=_fit(gpu, plan, recording, replayed, memory.interval) if gpu is not None else None,
        time=time,
        cost=cost,
        recipes=(),
        versions=facts["libraries"],
        notes=(*_notes(plan, recording, closed), *cost_notes),
        engine="trace",
        mode=MODES[facts["device"]],
        totals=_totals(recording, replayed, at),
        phases=_phases(recording, replayed),
        largest=tuple(largest(recording, replayed, at, top)),
        categories=by_category(recording, at),
        tree=tree(recording, at, "peak allocated"),
        timeline=timeline(recording, replayed, TIMELINE_POINTS),
        attention_kernels=tuple(facts["attention_kernels"]),
        libraries=facts["libraries"],
        seconds=Seconds.model_construct(build_s=facts["build_s"], trace_s=facts["trace_s"]),
    )


def _releases(facts: dict[str, Any]) -> dict[str, str]:
    """The releases that ran, as a request states them."""
    return {name: found for name, found in facts["libraries"].items() if name in LIBRARIES}


def closed_form(plan: TracePlan, libraries: Mapping[str, str]) -> tuple[Plan, Settled] | None:
    """What the closed form has of the same run under the releases that ran.

    None where it does not know the model or the method.
    """
    if plan.model is None or not isinstance(plan.method, Method) or plan.peft_config is not None:
        return None
    settings, releases = plan.settings, versions_of(installed_versions(libraries))
    alike = Plan(
        settings.request,
        plan.found,
        plan.limit,
        plan.method,
        settings.method,
        settings.step,
        settings.gpu,
        releases,
    )
    try:
        return alike, settle(alike)
    except BadInput:
        return None


def _memory(
    plan: TracePlan, recording: Recording, replayed: Replay, closed: Settled | None, peak: str, at: int
) -> Memory:
    outside = outside_allocator(plan.request, plan.settings.gpu, plan.settings.step)
    reserved = replayed.segments.reserved.num_bytes
    held = reserved + recording.facts.get("paged_bytes", 0)
    levels = moments(recording, replayed)
    load = closed.load if closed else None
    return Memory.model_construct(
        peak_moment=peak,
        peak_allocated_bytes=levels[peak],
        peak_reserved_bytes=reserved,
        device_bytes=held + outside.middle_bytes,
        interval=Interval.model_construct(**asdict(_device_bounds(plan, held))),
        resident=ResidentBytes.model_validate(resident(recording)),
        activations_bytes=activations_bytes(recording),
        moments=levels,
        evaluation_peak_bytes=closed.evaluation_peak_bytes if closed else None,
        load=None
        if load is None
        else LoadBytes.model_construct(
            device_peak_bytes=load.device_peak_bytes,
            host_peak_bytes=load.host_peak_bytes,
            checkpoint_bytes=load.checkpoint_bytes,
        ),
        optimizer_paged_bytes=recording.facts.get("paged_bytes", 0),
        optimizer_host_bytes=recording.facts.get("host_bytes", 0),
        breakdown=breakdown(recording, peak, at),
    )


def _device_bounds(plan: TracePlan, held: int) -> Bounds:
    """The interval around the process, for what the allocator and paged states hold."""
    outside = outside_allocator(plan.request, plan.settings.gpu, plan.settings.step)
    return around_device(_kind_of_run(plan), held, outside, plan.settings.step.compute_capability)


def _kind_of_run(plan: TracePlan) -> str:
    return kind_of_run(plan.method.frozen_base, plan.settings.method.quant is not None)


def _fit(gpu: GpuRecord, plan: TracePlan, recording: Recording, replayed: Replay, interval: Interval) -> GpuFit:
    """Whether the run completes: as the closed form asks it, of the traced events."""
    outside = outside_allocator(plan.request, plan.settings.gpu, plan.settings.step)
    needed = least_capacity_bytes(recording, replayed) + outside.middle_bytes
    usable = gpu.usable_bytes
    fits = needed <= usable
    return GpuFit.model_construct(
        name=gpu.name,
        num_gpus=plan.request.gpus,
        sold_bytes=gpu.sold_bytes,
        driver_bytes=gpu.driver_bytes,
        usable_bytes=usable,
        fits=fits,
        certain=is_certain(fits, interval.low_bytes, interval.high_bytes, usable),
        headroom_bytes=usable - needed,
    )


def _totals(recording: Recording, replayed: Replay, at: int) -> Totals:
    return Totals.model_construct(
        requested_bytes=sum(recording.sizes[number] for number in recording.alive(at)),
        allocated_bytes=replayed.levels[at],
        blocks_bytes=replayed.segments.allocated.num_bytes,
        reserved_bytes=replayed.segments.reserved.num_bytes,
        reserved_expandable_bytes=replayed.expandable.reserved.num_bytes,
    )


def _phases(recording: Recording, replayed: Replay) -> tuple[PhasePeak, ...]:
    found = []
    for phase in replayed.phases:
        code = recording.events[phase.peak.event - 1] if phase.peak.event else 0
        born = code - 1 if code > 0 else None
        found.append(
            PhasePeak.model_construct(
                name=phase.name,
                step=phase.step,
                peak_allocated_bytes=phase.peak.num_bytes,
                module=recording.text(recording.modules, born) if born is not None else "",
                operation=recording.text(recording.operations, born) if born is not None else "",
            )
        )
    return tuple(found)


def _notes(plan: TracePlan, recording: Recording, closed: Settled | None) -> tuple[str, ...]:
    request, facts = plan.request, recording.facts
    notes = [plan.found.origin, recipe_note(request, plan.method.frozen_base, plan.settings.step.autocast)]
    notes += plan.notes()
    notes += installed_notes(plan.settings.versions, facts["libraries"])
    notes += length_notes(request, plan.limit)
    notes += style_notes(request)
    notes += closed.model.notes if closed else []
    if "math" in facts["attention_kernels"]:
        notes.append(MATH_ATTENTION)
    if request.padding and plan.settings.step.attention in PADDING:
        notes.append(PADDING[plan.settings.step.attention])
    notes += facts["notes"]
    notes += gpu_notes(plan.settings.gpu)
    notes.append(
        "allocated is traced; reserved comes from a model of torch's allocator over the traced events; device "
        "adds a CUDA context from literature"
    )
    return tuple(notes)
