"""The two engines behind one door: the closed form, and the trace of the real libraries in a child process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftplan import planner
from peftplan.calibrated import calibrated
from peftplan.catalog.calibration import read_calibration
from peftplan.errors import BadInput
from peftplan.report import Comparison, Difference, Report
from peftplan.request import Request, states_run
from peftplan.resolve import resolve
from peftplan.versions import installed_versions

if TYPE_CHECKING:
    from peftplan.measure.trace.plan import TracePlan
    from peftplan.measure.trace.process import Worker
    from peftplan.measure.trace.recording import Recording
    from peftplan.measure.trace.report import TraceReport
    from peftplan.merging.answers import MergeReport
    from peftplan.merging.options import Merging

Progress = Callable[[float, str], None]
NO_TIME_OR_COST = "no time and no cost: these are the closed form's, which does not know this model or method"


@dataclass(frozen=True, slots=True)
class Traced:
    """A traced run: its answer, and the recording behind it."""

    plan: TracePlan
    recording: Recording
    report: TraceReport


def estimate(request: Request, progress: Progress | None = None) -> Report:
    """Memory of one run on one device, by the engine that the request names."""
    found = trace(request, progress=progress).report if request.engine == "trace" else planner.estimate(request)
    return calibrated(found, read_calibration()) if found.gpu is not None else found


def compare(requests: Iterable[Request], progress: Progress | None = None) -> Comparison:
    """Runs side by side: every answer, and the parts of their peaks row by row.

    Where these are one run by both engines, the tensors in which they differ are told too.
    """
    asked = list(requests)
    traced: dict[int, Traced] = {}
    with ExitStack() as stack:
        worker = None
        for number, request in enumerate(asked):
            if request.engine == "trace":
                worker = worker or stack.enter_context(new_worker())
                traced[number] = trace(request, worker=worker, progress=_share(progress, number, len(asked)))
    twin = len(asked) == 2 and len(traced) == 1 and _alike(*asked)
    columns: list[Report] = []
    for number, request in enumerate(asked):
        if number in traced:
            columns.append(traced[number].report)
            continue
        runs = [one for other, one in traced.items() if _alike(asked[other], request)]
        asked[number] = _as_installed(request, runs[0].report) if runs else request
        columns.append(estimate(asked[number]))
    comparison = Comparison.of(tuple(columns))
    if not twin:
        return comparison
    ((number, one),) = traced.items()
    found = _differences(asked[1 - number], one)
    if asked[0].engine == "trace":
        found = tuple(one.model_copy(update={"bytes": one.bytes[::-1]}) for one in found)
    return comparison.model_copy(update={"differences": found})


def merge(request: Request, merging: Merging | None = None, progress: Progress | None = None) -> MergeReport:
    """Ways to merge the adapter of a request, by the engine that it names: the trace runs peft's own merge."""
    from peftplan.merging.service import merge as answer

    if request.engine != "trace":
        return answer(request, merging)
    from peftplan.measure.trace.merged import TracedMerges

    with new_worker() as worker:
        traced = TracedMerges(request, worker, progress)
        return answer(request, merging, traced.play)


def _alike(one: Request, other: Request) -> bool:
    """Whether two requests are one run, by whatever engines."""
    return one == other.model_copy(update={"engine": one.engine})


def _as_installed(request: Request, traced: TraceReport) -> Request:
    """The request for the library releases that a trace of the same run found, where it names none."""
    found = installed_versions(traced.libraries)
    open_fields = {name: text for name, text in found.items() if getattr(request, name) is None}
    return request.model_copy(update=open_fields)


def _differences(request: Request, traced: Traced) -> tuple[Difference, ...]:
    """Tensors that only one engine has at its peak; bytes of the closed form first."""
    from peftplan.measure.trace.account import peak_event
    from peftplan.measure.trace.account import peak_tensors as traced_tensors
    from peftplan.measure.trace.differences import differences
    from peftplan.measure.trace.replay import replay
    from peftplan.memory.account import peak_tensors

    moment, event = peak_event(traced.recording, replay(traced.recording))
    closed = peak_tensors(planner.settle(resolve(request)).account)
    return differences(closed, traced_tensors(traced.recording, moment, event))


def trace(
    request: Request,
    *,
    peft_config: Mapping[str, Any] | None = None,
    layers: int | None = None,
    fast: bool = False,
    top: int = 10,
    worker: Worker | None = None,
    progress: Progress | None = None,
) -> Traced:
    """Run the real step on fake tensors; `layers` cuts the model, `fast` traces few blocks and adds the others."""
    from peftplan.measure.trace.plan import plan_trace
    from peftplan.measure.trace.report import trace_report

    plan = plan_trace(request.model_copy(update={"engine": "trace"}), peft_config, layers)
    with ExitStack() as stack:
        worker = worker or stack.enter_context(new_worker())
        recording = _recorded(plan, worker, fast, progress)
    report = trace_report(plan, recording, top)
    if report.time is None and (states_run(request) or request.gpu is not None):
        report = report.model_copy(update={"notes": (*report.notes, NO_TIME_OR_COST)})
    return Traced(plan, recording, report)


def new_worker() -> Worker:
    """A child process for several traces; to be used as a context manager."""
    from peftplan.measure.trace.process import Worker

    return Worker()


def _recorded(plan: TracePlan, worker: Worker, fast: bool, progress: Progress | None) -> Recording:
    from peftplan.measure.trace.fast import trace_fast

    try:
        return trace_fast(plan, worker, progress) if fast else worker.run(plan.job, progress)
    except BadInput as error:  # the closed form's words are easier to act on
        raise BadInput(plan.refused(str(error)) or str(error)) from None


def _share(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Progress of one of several runs, as progress of them all."""
    if progress is None:
        return None
    return lambda done, label: progress((number + done) / count, f"run {number + 1} of {count}: {label}")
