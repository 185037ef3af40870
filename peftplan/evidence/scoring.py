"""Every case under every engine: predicted, weighed against what was measured, or set aside with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePath
from typing import TYPE_CHECKING

from peftplan import engines, planner
from peftplan.catalog import find_gpu
from peftplan.cost.buckets import Bucketed
from peftplan.errors import MachineLacks, PeftplanError
from peftplan.evidence.comparison import SHARE
from peftplan.evidence.rows import Case, cases
from peftplan.evidence.tables import Table
from peftplan.evidence.time_rows import impossible
from peftplan.measured import BYTE_METRICS, METRICS, MeasuredRun, Metric
from peftplan.memory.intervals import around, kind_of_run
from peftplan.methods import METHODS
from peftplan.packing import is_packed
from peftplan.report import Report
from peftplan.resolve import capability_of
from peftplan.scores import Score
from peftplan.varied import reserved_share

if TYPE_CHECKING:
    from peftplan.measure.trace.process import Worker

# A source rounds its count of trained parameters; a larger difference is another configuration.
_SAME_COUNT = 0.01

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is to be scored: tables of rows, and records of runs by the files they came from."""

    tables: tuple[Table, ...] = ()
    records: tuple[tuple[str, MeasuredRun], ...] = ()

    def cases(self) -> Iterator[tuple[str, Case]]:
        """Every case with the name of its file."""
        for table in self.tables:
            for case in cases(table):
                yield PurePath(table.name).name, case
        for name, run in self.records:
            yield from ((PurePath(name).name, case) for case in _record_cases(run))


def _record_cases(run: MeasuredRun) -> Iterator[Case]:
    """A record as cases: one for each figure that it holds, or one for a run that has none."""
    measured = [metric for metric in METRICS if run.measured.of(metric) is not None]
    if run.outcome == "out_of_memory" or not measured:
        measured = ["device"]
    for metric in measured:
        reason = ""
        if run.outcome in ("interrupted", "failed"):
            reason = f"the run {'was interrupted' if run.outcome == 'interrupted' else 'failed'}"
        elif run.hardware.num_gpus == 0:
            reason = "a run on the CPU"
        yield Case(
            row=1,
            source=run.source,
            model=str(run.request.model) if isinstance(run.request.model, str) else "a config",
            method=run.request.method,
            metric=metric,
            config_key=run.config_key or run.request.model_dump_json(),
            run=None if reason else run.model_copy(update={"metric": metric}),
            reason=reason,
        )


def score(evidence: Evidence, names: Sequence[str], progress: Progress | None = None) -> list[Score]:
    """One score for each case and engine, in the order of the cases."""
    listed = list(evidence.cases())
    with ExitStack() as stack:
        predictor = _Predictor(stack)
        answer = []
        for number, (file, case) in enumerate(listed):
            for name in names:
                if progress is not None:
                    progress(number / len(listed), f"{file}, row {case.row}")
                answer.append(_score(file, case, name, predictor))
    return answer


class _Predictor:
    """Answers by request and engine; like requests are answered once, traces by one child process."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._worker: Worker | None = None
        self._known: dict[tuple[str, str], Report | str] = {}
        self._shares: dict[tuple[str, int], int] = {}

    def predict(self, run: MeasuredRun, name: str) -> Report | str:
        """The answer, or the reason why there is none."""
        key = (name, run.request.model_dump_json())
        if key not in self._known:
            try:
                self._known[key] = self._ask(run, name)
            except PeftplanError as error:
                if isinstance(error, MachineLacks) and not _can_trace():  # no property of the row
                    raise
                self._known[key] = str(error)
        return self._known[key]

    def share(self, run: MeasuredRun, batches: Bucketed) -> int:
        """What is reserved after a step at most, in the share of steps that peft's comparison reports."""
        key = (run.request.model_dump_json(), batches.emptied_every)
        if key not in self._shares:
            self._shares[key] = reserved_share(run.request, batches, SHARE)
        return self._shares[key]

    def _ask(self, run: MeasuredRun, name: str) -> Report:
        if name != "trace":
            return planner.estimate(run.request)
        if self._worker is None:
            self._worker = self._stack.enter_context(engines.new_worker())
        return engines.trace(run.request, fast=True, worker=self._worker).report


def _can_trace() -> bool:
    return all(find_spec(name) is not None for name in ("torch", "transformers"))


def _score(file: str, case: Case, name: str, predictor: _Predictor) -> Score:
    if case.run is None:
        return _set_aside(file, case, name, case.reason)
    if case.batches is not None and name != "closed":
        return _set_aside(file, case, name, "steps of varying length are replayed by the closed form alone")
    answer = predictor.predict(case.run, name)
    if isinstance(answer, str):
        return _set_aside(file, case, name, answer)
    if case.run.metric not in BYTE_METRICS and (reason := _untimed(case.run, answer)):
        return _set_aside(file, case, name, reason)
    count = case.num_trainable
    if count and abs(answer.method.num_trainable_params / count - 1) > _SAME_COUNT:
        text = f"the source trains {count:,} parameters, this configuration {answer.method.num_trainable_params:,}"
        return _set_aside(file, case, name, text)
    if case.run.outcome == "out_of_memory":
        return _out_of_memory(file, case, name, answer)
    predicted = _predicted(answer, case.run.metric)
    if case.batches is not None:
        predicted = float(predictor.share(case.run, case.batches))
    return _completed(file, case, name, answer, predicted)


def _untimed(run: MeasuredRun, report: Report) -> str:
    """Why a speed cannot be held against the answer; empty where it can."""
    time, measured = report.time, run.measured.of(run.metric)
    if time is None:
        return "no time is predicted: the GPU is not named, or its rates are not known"
    assert measured is not None
    predicted = _predicted(report, run.metric)
    faster = predicted / measured if run.metric == "step_s" else measured / predicted
    hfu = (time.hfu_frac or 0.0) * faster
    return impossible(run.hardware.gpu, hfu) if hfu > 1 else ""


def _predicted(report: Report, metric: Metric) -> float:
    """A report's figure by the name of its metric; tokens per second are those of one GPU."""
    memory, time = report.memory, report.time
    if time is not None and metric == "tokens_per_s":
        return time.tokens_per_s / int(report.request["gpus"])
    if time is not None and metric == "step_s":
        return time.step_s
    figures = {
        "allocated": memory.peak_allocated_bytes,
        "reserved": memory.peak_reserved_bytes,
        "device": memory.device_bytes,
    }
    return float(figures[metric])


def _completed(file: str, case: Case, name: str, report: Report, predicted: float) -> Score:
    assert case.run is not None
    measured = case.run.measured.of(case.run.metric)
    assert measured is not None
    low, high = _interval(report, case.run.metric, predicted)
    weighed = {
        "predicted": predicted,
        "measured": measured,
        "error_frac": predicted / measured - 1,
        "low": float(low),
        "high": float(high),
        "inside_interval": low <= measured <= high,
    }
    if case.apart:
        return _set_aside(file, case, name, case.reason).model_copy(
            update={"apart": case.apart, "apart_error_frac": weighed["error_frac"]}
        )
    return _blank(file, case, name).model_copy(update={"used": True, **weighed})


def _interval(report: Report, metric: str, predicted: float) -> tuple[float, float]:
    """Where a figure is expected: the report's own for the device and for time, the allocator's for its figures."""
    memory, time = report.memory, report.time
    if time is not None and metric == "step_s":
        return time.interval.low_s, time.interval.high_s
    if time is not None and metric == "tokens_per_s":
        tokens = time.tokens_per_s * time.step_s / int(report.request["gpus"])
        return tokens / time.interval.high_s, tokens / time.interval.low_s
    if metric == "device":
        return memory.interval.low_bytes, memory.interval.high_bytes
    kind = kind_of_run(METHODS[report.method.kind].frozen_base, is_packed(report.request["quant"]))
    name = report.request["gpu"]
    bounds = around(metric, kind, round(predicted), capability_of(find_gpu(name) if name else None))
    return bounds.low_bytes, bounds.high_bytes


def _out_of_memory(file: str, case: Case, name: str, report: Report) -> Score:
    gpu = report.gpu
    assert gpu is not None
    needed = gpu.usable_bytes - gpu.headroom_bytes
    return _blank(file, case, name).model_copy(
        update={
            "used": True,
            "outcome": "out_of_memory",
            "predicted": float(needed),
            "measured": float(gpu.usable_bytes),
            "error_frac": needed / gpu.usable_bytes - 1,
            "says_fits": gpu.fits,
        }
    )


def _set_aside(file: str, case: Case, name: str, reason: str) -> Score:
    return _blank(file, case, name).model_copy(update={"reason": reason})


def _blank(file: str, case: Case, name: str) -> Score:
    return Score.model_construct(
        file=file,
        row=case.row,
        source=case.source,
        used=False,
        reason="",
        metric=case.metric,
        engine=name,
        outcome="completed",
        model=case.model,
        method=case.method,
        config_key=case.config_key,
        predicted=None,
        measured=None,
        error_frac=None,
        low=None,
        high=None,
        inside_interval=None,
        says_fits=None,
        apart="",
        apart_error_frac=None,
    )
