"""Seconds of a planned step as the report tells them: its work, the card's rates, and how certain that is."""

from __future__ import annotations

from dataclasses import dataclass

from peftplan.catalog import GpuRecord
from peftplan.catalog.step_time_fit import step_time_fit
from peftplan.cost.generating import with_generation
from peftplan.cost.rates import rates
from peftplan.cost.step_time import Setting, StepTime, step_time
from peftplan.report import Time, TimeInterval
from peftplan.request import Request
from peftplan.specs.work import Work
from peftplan.styles import style_of
from peftplan.versions import parse

NO_TIME = "{}: no time is predicted, since no rate of its matrix products is known in the types of this step"

HOST_FRAC = 0.5  # of a step: above it how fast the host is begins to matter
NO_BF16 = (
    "{} cannot multiply in bf16: such products are converted and run at a fraction of the fp16 rate; "
    "take --precision fp16-mixed or fp16"
)


@dataclass(frozen=True, slots=True)
class Ground:
    """How far from a predicted step a measured one is expected, as a fraction, and why."""

    half_frac: float
    coverage: float
    basis: str


def time_of(
    request: Request, gpu: GpuRecord, work: Work, gradient_bytes: int, generation_s: float | None = None
) -> Time | None:
    """The time of a request whose defaults are filled in; None where the card's rates are not known.

    `generation_s`: what the step generates before it trains on that.
    """
    setting = Setting(
        grad_accum=request.grad_accum,
        num_gpus=request.gpus,
        gradient_bytes=gradient_bytes,
        by_lookup=unpacks_by_lookup(request.bitsandbytes),
    )
    found = step_time(work, gpu, setting)
    if found is None:
        return None
    if generation_s is not None:
        found = with_generation(found, generation_s)
    rows = request.micro_batch * style_of(request).rows
    tokens = rows * (request.seq_len or 0) * request.grad_accum * request.gpus
    return as_time(found, tokens, ground(gpu, found.dtype, found.host_s > HOST_FRAC * found.step_s))


def unpacks_by_lookup(bitsandbytes: str | None) -> bool:
    """Whether a release of bitsandbytes unpacks 4-bit weights by a lookup. Source: bnb-lookup."""
    return bitsandbytes is None or parse(bitsandbytes) >= (0, 48, 0)


def time_notes(gpu: GpuRecord | None, time: Time | None, computes_bf16: bool) -> tuple[str, ...]:
    """What is to be said of a card without a time, and of one that lacks the type it computes in."""
    if gpu is None:
        return ()
    if time is None:
        return (NO_TIME.format(gpu.name),)
    return (NO_BF16.format(gpu.name),) if computes_bf16 and not gpu.bf16_native else ()


def as_time(found: StepTime, num_tokens: int, ground: Ground) -> Time:
    """A step's seconds with their interval: as likely to be faster by a factor as slower by it."""
    reach = 1 + ground.half_frac
    return Time.model_construct(
        step_s=found.step_s,
        tokens_per_s=num_tokens / found.step_s,
        bound=found.bound,
        terms=found.terms,
        interval=TimeInterval.model_construct(
            low_s=found.step_s / reach,
            high_s=found.step_s * reach,
            coverage=ground.coverage,
            basis=ground.basis,
        ),
        num_flop=found.num_flop,
        hfu_frac=found.hfu_frac,
        mfu_frac=found.mfu_frac,
    )


def rescaled(time: Time, ratio: float) -> Time:
    """The time of a step that takes `ratio` times as long: every part of it, and its interval."""
    interval = time.interval.model_copy(
        update={
            "low_s": time.interval.low_s * ratio,
            "high_s": time.interval.high_s * ratio,
            "basis": f"{time.interval.basis}; steps of this machine took {ratio:.3f} times the prediction",
        }
    )
    return time.model_copy(
        update={
            "step_s": time.step_s * ratio,
            "tokens_per_s": time.tokens_per_s / ratio,
            "terms": {name: seconds * ratio for name, seconds in time.terms.items()},
            "interval": interval,
            "hfu_frac": None if time.hfu_frac is None else time.hfu_frac / ratio,
            "mfu_frac": None if time.mfu_frac is None else time.mfu_frac / ratio,
        }
    )


def ground(gpu: GpuRecord, dtype: str, waits: bool = False) -> Ground:
    """What an interval rests on: steps measured on this card, on others, or on none that is like it.

    `waits`: the host takes much of the step. Hosts differ more than cards, and steps that wait for one were
    measured on few: such a step has the spread of cards left out.
    """
    fit, found = step_time_fit(), rates(gpu)
    own = None if waits else fit.seen.get(gpu.key)
    spread, where = (own, "this GPU, models left out") if own else (fit.unseen, "GPUs left out of the fit")
    text = f"measured steps of {spread.configurations} configurations up to {fit.date} ({where})"
    half = spread.half_frac
    if waits:
        text += "; the host takes much of the step"
    if own is None and (not found.cuda or dtype not in found.measured):
        half *= fit.widening
        text += "; no CUDA card: widened" if not found.cuda else "; its matrix rate is not measured: widened"
    return Ground(half, fit.coverage, text)
