"""Carries runs out one by one - predict, measure in a child, record, compare - and lists of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftplan import planner
from peftplan.errors import BadInput, NotFound, PeftplanError
from peftplan.measure.profile.figures import failed_record, record_of
from peftplan.measure.profile.plan import CPU, RANDOM, Planned, plan_run
from peftplan.measure.profile.process import Child, RunFailed, check_installed
from peftplan.measure.profile.records import recorded, write_record
from peftplan.measure.profile.report import ProfileReport, profile_report
from peftplan.measure.trace.process import Worker
from peftplan.measure.trace.report import trace_report
from peftplan.measured import MeasuredRun
from peftplan.methods import Method
from peftplan.report import Report
from peftplan.request import Request

Progress = Callable[[float, str], None]
StartChild = Callable[[str], Child]
CLOSED, TRACE = "closed", "trace"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One run as it was asked for."""

    request: Request
    weights: str = RANDOM
    num_warmup: int | None = None
    num_steps: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """A run of a list: its report, or why there is none."""

    name: str
    report: ProfileReport | None
    error: str = ""
    was_recorded: bool = False


class Session:
    """Runs on one device; to be used as a context manager."""

    def __init__(
        self, device: str, folder: Path, tolerance: float | None = None, start: StartChild = Child
    ) -> None:
        self.device, self.folder, self.tolerance = device, folder, tolerance
        self._start = start
        self._stack = ExitStack()
        self._child: Child | None = None
        self._worker: Worker | None = None
        self._hardware: dict[str, Any] | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_child()
        self._stack.close()

    def hardware(self) -> dict[str, Any]:
        """What the device is; raises MachineLacks where there is none."""
        if self._hardware is None:
            if self._start is Child:
                check_installed()
            self._hardware = self._started().hardware()
        return self._hardware

    def run(self, wanted: Wanted, progress: Progress | None = None) -> ProfileReport:
        """Carry one run out, record it and compare; what the run's libraries refuse raises."""
        planned = self.plan(wanted)
        if self._start is Child:
            check_installed(planned.task.job)
        predicted, engine = self.predict(planned)
        try:
            answer = self._started().measure(planned.task, progress)
        finally:
            self._end_child()  # one child a run: nothing of it is left for the next
        run = record_of(planned, answer)
        path = write_record(self.folder, planned.name, run)
        return profile_report(predicted, run, self.device, engine, str(path), self.tolerance)

    def plan(self, wanted: Wanted) -> Planned:
        """The run with every default filled in, for this session's device."""
        hardware = self.hardware()
        return plan_run(wanted.request, self.device, hardware, wanted.weights, wanted.num_warmup, wanted.num_steps)

    def run_all(self, runs: Sequence[Callable[[], Wanted]], progress: Progress | None = None) -> Iterator[Done]:
        """Carry out a list, each run in a child of its own; what is recorded is not run again.

        A run that cannot be carried out, or fails, keeps none of the others back.
        """
        for number, place in enumerate(runs):
            name = f"run {number + 1}"
            try:
                wanted = place()
                name = wanted.name or name
                planned = self.plan(wanted)
                name = planned.name
                known = recorded(self.folder, name)
                if known is not None:
                    yield Done(name, self._again(planned, known), was_recorded=True)
                    continue
                yield Done(name, self.run(wanted, _share(progress, number, len(runs))))
            except RunFailed as failed:
                write_record(self.folder, name, failed_record(planned, self.hardware(), str(failed)))
                yield Done(name, None, str(failed))
            except (BadInput, NotFound) as error:
                yield Done(name, None, str(error))

    def predict(self, planned: Planned) -> tuple[Report, str]:
        """The prediction for a run, and the engine that made it; on the CPU only the trace knows its kernels."""
        return predict(planned, self._tracer)

    def _again(self, planned: Planned, known: MeasuredRun) -> ProfileReport:
        predicted, engine = self.predict(planned)
        path = str(self.folder / f"{planned.name}.json")
        return profile_report(predicted, known, self.device, engine, path, self.tolerance)

    def _tracer(self) -> Worker:
        if self._worker is None:
            self._worker = self._stack.enter_context(Worker())
        return self._worker

    def _started(self) -> Child:
        if self._child is None:
            self._child = self._start(self.device)
        return self._child

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()


def predict(planned: Planned, tracer: Callable[[], Worker]) -> tuple[Report, str]:
    """The closed form's answer where it has one and is asked for, or else the trace's."""
    plan = planned.plan
    request = plan.request
    if planned.device == CPU:
        job = replace(plan.job, device=CPU)
        return trace_report(plan, tracer().run(job)), TRACE
    known = plan.model is not None and isinstance(plan.method, Method)
    if request.engine != TRACE and known:
        return planner.estimate(request), CLOSED
    job = replace(plan.job, compute_capability=planned.task.job.compute_capability)
    try:
        return trace_report(plan, tracer().run(job)), TRACE
    except BadInput as error:
        raise BadInput(plan.refused(str(error)) or str(error)) from None


def foresee(place: Callable[[], Wanted], device: str) -> tuple[Planned | None, Report | None, str]:
    """What a dry run shows: the run as planned and its prediction by the closed form, or why there is none."""
    try:
        planned = plan_run(place().request, device, None, RANDOM)
        return planned, planner.estimate(planned.plan.request.model_copy(update={"engine": CLOSED})), ""
    except PeftplanError as error:
        return None, None, str(error)


def _share(progress: Progress | None, number: int, count: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, label: progress((number + done) / count, f"run {number + 1} of {count}: {label}")
