"""Tracing a deep model by two shallow ones, where its blocks are alike; the whole of it where they are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from peftplan.measure.trace.configs import with_layers
from peftplan.measure.trace.depth import choose_depths
from peftplan.measure.trace.extend import extended
from peftplan.measure.trace.plan import TracePlan
from peftplan.measure.trace.process import Worker
from peftplan.measure.trace.recording import Recording
from peftplan.measure.trace.repeat import NotRegularError

Progress = Callable[[float, str], None]
SAID = (
    "--fast: {shallow} and {deeper} of {depth} blocks were traced; the shorter run, extended, is the longer one "
    "event by event, and so the others were added"
)
IN_VAIN = "--fast: every block was traced, since {reason}"


def trace_fast(plan: TracePlan, worker: Worker, progress: Progress | None) -> Recording:
    """The recording of the plan's job, by extending shallow traces if the model allows it."""
    found = worker.blocks(plan.job, progress)
    if found is None:
        return _whole(plan, worker, progress, "the model has no single list of blocks")
    kinds = found["kinds"]
    depths = choose_depths(kinds)
    if depths is None:
        return _whole(plan, worker, progress, "its blocks do not repeat often enough for fewer to do")
    traced = depths.shallow + depths.deeper
    recordings = []
    for layers, done in ((depths.shallow, 0), (depths.deeper, depths.shallow)):
        job = replace(plan.job, config=with_layers(plan.job.config, layers))
        recordings.append(worker.run(job, _part(progress, done / traced, layers / traced)))
    try:
        recording = extended(recordings[0], recordings[1], found["path"], depths, len(kinds))
    except NotRegularError as error:
        return _whole(plan, worker, progress, str(error))
    recording.facts["notes"] = [
        *recording.facts["notes"],
        SAID.format(shallow=depths.shallow, deeper=depths.deeper, depth=len(kinds)),
    ]
    recording.facts["build_s"] += recordings[0].facts["build_s"]
    recording.facts["trace_s"] += recordings[0].facts["trace_s"]
    return recording


def _whole(plan: TracePlan, worker: Worker, progress: Progress | None, reason: str) -> Recording:
    recording = worker.run(plan.job, progress)
    recording.facts["notes"] = [*recording.facts["notes"], IN_VAIN.format(reason=reason)]
    return recording


def _part(progress: Progress | None, begin: float, share: float) -> Progress | None:
    if progress is None:
        return None
    return lambda done, label: progress(begin + share * done, label)
