"""From what the child measured to a record: medians, rates, and what cannot be is refused. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from statistics import median
from typing import Any, Literal

from peftplan.catalog import find_gpu
from peftplan.measure.profile.flop import least_flop, step_flop
from peftplan.measure.profile.plan import CPU, Planned
from peftplan.measured import Figures, Hardware, MeasuredRun

SOURCE = "peftplan profile"
Outcome = Literal["completed", "out_of_memory", "failed", "interrupted"]
ON_THE_CPU = (
    "a run on the CPU: its memory is what torch's profiler saw requested, each block rounded up to 512 bytes, "
    "its time is that of this CPU; no GPU has confirmed either"
)
_TIMES = (
    "step_s",
    "step_s_each",
    "tokens_per_s",
    "flop_per_s",
    "hfu_frac",
    "energy_j",
    "power_w",
    "utilisation_frac",
)


def record_of(planned: Planned, answer: Mapping[str, Any]) -> MeasuredRun:
    """The record of a run that the child came back from."""
    figures = dict(answer["figures"])
    facts = answer["facts"]
    notes = list(dict.fromkeys(answer["notes"]))
    if planned.device == CPU:
        notes.insert(0, ON_THE_CPU)
    else:
        notes += _about_the_card(planned, answer["hardware"]["gpu"])
    outcome: Outcome = answer["outcome"]
    if figures.get("step_s_each"):
        figures |= _rates(planned, figures["step_s_each"], facts)
        if figures.get("energy_j") is not None:
            figures["energy_j"] /= len(figures["step_s_each"])  # a step's
    if figures.get("hfu_frac", 0.0) > 1:
        outcome = "failed"
        notes.append(
            f"refused: {figures['hfu_frac']:.2f} of the GPU's peak rate would be more than there is, so the times "
            "of this run are not those of its steps"
        )
        figures = {name: value for name, value in figures.items() if name not in _TIMES}
    counted = {name: facts[name] for name in ("num_params", "num_trainable_params") if name in facts}
    return _record(planned, outcome, Figures(**figures, **counted), answer["hardware"], answer["libraries"], notes)


def _about_the_card(planned: Planned, name: str) -> list[str]:
    """What is to be said where the prediction is for another card than the one at hand."""
    asked, here = planned.plan.request.gpu, find_gpu(name)
    if asked is None:
        return [f"{name} is not in the catalogue: the prediction is for kernels of an A100, and no card's capacity"]
    if here is None or here.key != asked:
        return [f"the run was on {name}, the prediction is for --gpu {asked}"]
    return []


def failed_record(planned: Planned, hardware: Mapping[str, Any], why: str) -> MeasuredRun:
    """The record of a run that did not come to an end."""
    return _record(planned, "failed", Figures(), hardware, {}, [why])


def _record(
    planned: Planned,
    outcome: Outcome,
    figures: Figures,
    hardware: Mapping[str, Any],
    libraries: Mapping[str, str],
    notes: list[str],
) -> MeasuredRun:
    if planned.task.weights is not None:
        notes.append("weights read from safetensors")
    return MeasuredRun(
        kind="profile",
        source=SOURCE,
        date=datetime.now(tz=timezone.utc).date().isoformat(),
        outcome=outcome,
        request=planned.request,
        measured=figures,
        hardware=Hardware(**hardware),
        libraries=dict(libraries),
        config_key=planned.key,
        notes=tuple(notes),
    )


def _rates(planned: Planned, seconds: list[float], facts: Mapping[str, Any]) -> dict[str, Any]:
    job = planned.task.job
    step_s = median(seconds)
    num_tokens = job.micro_batch * job.seq_len * job.num_micro_steps
    flop = step_flop(planned.request)
    if flop is None:
        weights = facts["num_matmul_params"], facts["num_trained_matmul_params"]
        flop = least_flop(*weights, num_tokens, job.checkpointing)
    found = {"step_s": step_s, "tokens_per_s": num_tokens / step_s, "flop_per_s": flop / step_s}
    peak = _peak_flop_per_s(planned)
    if peak:
        found["hfu_frac"] = flop / step_s / peak
    return found


def _peak_flop_per_s(planned: Planned) -> float | None:
    """The rate of dense matrix products that the GPU's record states, in the run's own type."""
    gpu = planned.plan.request.gpu
    record = find_gpu(gpu) if gpu is not None and planned.device != CPU else None
    if record is None:
        return None
    job = planned.task.job
    kind = job.autocast or job.base_dtype
    return {"bf16": record.bf16_flop_per_s, "fp16": record.fp16_flop_per_s}.get(kind, record.fp32_flop_per_s)
