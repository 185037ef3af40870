"""Seconds of a run's own generation: its prompts' pass, and a pass for each further token, from the played passes.

Assumes: every step of the sequences takes what the one half way takes; the host launches each, as generate does.

Source: roofline
"""

from __future__ import annotations

from dataclasses import replace

from peftplan.catalog import GpuRecord
from peftplan.cost.serving import Rows, cache_work, decode_time, pass_work, prefill_time, with_experts
from peftplan.cost.step_time import StepTime
from peftplan.memory.generated import Generated
from peftplan.memory.kv_cache import CacheForm
from peftplan.specs.model import ModelSpec

GENERATION = "generation"


def generation_s(made: Generated, model: ModelSpec, gpu: GpuRecord, dtype: str) -> float | None:
    """All sequences to their full length; None where no rate is known. `dtype`: what attention computes in."""
    prompts = with_experts(pass_work(made.of_prompt, model, False), model, made.rows * made.prompt)
    rows = Rows(made.rows, made.prompt + made.extra + made.new // 2)
    token = with_experts(pass_work(made.of_token, model, False), model, made.rows)
    token += cache_work(made.layers, CacheForm(made.itemsize), rows, dtype)
    first, each = prefill_time(prompts, gpu), decode_time(token, gpu, replayed=False)
    if first is None or each is None:
        return None
    return first.step_s + (made.new - 1) * each.step_s


def with_generation(found: StepTime, seconds: float) -> StepTime:
    """A step that begins with so many seconds of generation; what it makes use of is that of the rest."""
    step_s = found.step_s + seconds
    share = found.step_s / step_s
    return replace(
        found,
        step_s=step_s,
        terms={GENERATION: seconds, **found.terms},
        bound=GENERATION if seconds > found.step_s else found.bound,
        hfu_frac=None if found.hfu_frac is None else found.hfu_frac * share,
        mfu_frac=None if found.mfu_frac is None else found.mfu_frac * share,
    )
