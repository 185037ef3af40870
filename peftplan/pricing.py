"""From a step's time to a run's hours and dollars: how long it is, what it costs, and what was assumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from peftplan.catalog import GpuRecord
from peftplan.catalog.prices import STALE_DAYS, age_days, check_region, find_provider, offers_for
from peftplan.cost.price import PriceRange, own_price, price_range
from peftplan.cost.run import (
    POWER_FRAC,
    SPOT_LIFETIME_H,
    SPOT_LIFETIME_LONG_H,
    SPOT_LIFETIME_SHORT_H,
    Run,
    best_save_every,
    energy_kwh,
    forward_share,
    run_seconds,
)
from peftplan.errors import BadInput
from peftplan.report import Cost, Memory, Time
from peftplan.request import NO_LENGTH, Request
from peftplan.run_length import RunLength, length_of
from peftplan.styles import style_of
from peftplan.units import HOUR_S, format_duration

# Parts of a step that take as long whatever its tokens are.
FIXED_TERMS = ("optimizer", "communication", "transfer")
_ENERGY = "energy is that of the GPUs, drawing "
_OF_DATA = ("packing", "group_by_length", "chars_per_token")  # options that say nothing without a training set


@dataclass(frozen=True, slots=True)
class Facts:
    """What a run's cost needs to know of its model and method.

    `checkpoint_bytes`: what is written to go on from (trained weights, masters, optimizer states); `load_bytes`:
    the base on disk; `power_w`: measured draw of a GPU, where there is one.
    """

    frozen_base: bool
    checkpoint_bytes: int
    load_bytes: int
    power_w: float | None = None


def facts_of(memory: Memory, frozen_base: bool, power_w: float | None = None) -> Facts:
    """The facts of an answer: a checkpoint holds what trains and what the optimizer keeps of it."""
    resident = memory.resident
    trained = resident.adapters if frozen_base else resident.weights
    return Facts(
        frozen_base=frozen_base,
        checkpoint_bytes=trained + resident.master_weights + resident.optimizer_states,
        load_bytes=memory.load.checkpoint_bytes if memory.load is not None else 0,
        power_w=power_w,
    )


def check_run(request: Request) -> Request:
    """The request with its provider as the catalogue has it; options of a run that contradict are refused."""
    if request.tokens is not None and request.examples is not None:
        raise BadInput("--tokens and --examples both state the run's length; leave one of the two out")
    if request.data is None:
        given = [f"--{name.replace('_', '-')}" for name in _OF_DATA if getattr(request, name)]
        if given:
            raise BadInput(f"{given[0]} is of a training set, and none is given; add --data FILE, or leave it out")
    if request.packing and request.group_by_length:
        raise BadInput("--packing leaves no lengths that --group-by-length could group; leave one of the two out")
    if request.eval_every is not None and request.eval_tokens is None:
        raise BadInput("--eval-every says when, not how much; add --eval-tokens, or leave it out")
    provider = find_provider(request.provider) if request.provider is not None else None
    if request.region is not None:
        check_region(request.region, provider)
    return request if provider == request.provider else request.model_copy(update={"provider": provider})


def run_cost(
    request: Request, time: Time | None, gpu: GpuRecord | None, facts: Facts
) -> tuple[Cost | None, tuple[str, ...]]:
    """Hours and dollars of a run whose defaults are filled in, and notes; no cost where it cannot be known.

    Low, middle and high hours come from the interval of the step time and of the number of tokens, and with spot
    machines from how often these are taken away; dollars from those hours and the lowest, median and highest price.
    """
    if request.tokens is None and request.examples is None and request.data is None:
        return None, (NO_LENGTH,)
    length = length_of(request)
    if time is None or gpu is None:
        missing = "the step's time is not known" if gpu is not None else "no GPU is named; --gpu names one"
        return None, (f"no cost: {missing}",)
    run = _run(request, time, facts, length)
    try:
        parts = _three(request, time, run, length)
    except ValueError as error:
        return None, (f"no cost: on such machines the run never ends, as {error}; --save-every saves more often",)
    hours = [sum(part.values()) / HOUR_S for part in parts]
    price = _price(request, gpu)
    if price is None:
        kind = "spot price" if request.spot else "price"
        between = f"{format_duration(hours[0] * HOUR_S)} to {format_duration(hours[2] * HOUR_S)}"
        where = "".join(f" {name}" for name in (request.provider, request.region) if name)
        told = f"no cost: no {kind} of {gpu.name} is known{' of' + where if where else ''}; --price states one"
        return None, (f"{told}; the run takes {between}",)
    gpus = request.gpus
    return (
        Cost.model_construct(
            hours=hours[1],
            hours_low=hours[0],
            hours_high=hours[2],
            usd=hours[1] * gpus * price.middle,
            usd_low=hours[0] * gpus * price.low,
            usd_high=hours[2] * gpus * price.high,
            usd_per_gpu_hour=price.middle,
            price_source=price.source,
            price_date=price.date,
            num_tokens=length.num_tokens,
            num_steps=length.num_steps,
            energy_kwh=energy_kwh(gpu.tdp_w, gpus, hours[1], facts.power_w),
            parts={name: seconds / HOUR_S for name, seconds in parts[1].items()},
            data=length.data,
            notes=(*length.notes, *_notes(request, run, facts), *price.notes, *_age(price)),
        ),
        (),
    )


def _run(request: Request, time: Time, facts: Facts, length: RunLength) -> Run:
    rows = request.micro_batch * style_of(request).rows
    tokens_per_step = rows * request.grad_accum * request.gpus * (request.seq_len or 1)
    evals = 0
    if request.eval_tokens is not None:
        evals = max(1, length.num_steps // request.eval_every) if request.eval_every else 1
    run = Run(
        num_steps=length.num_steps,
        computed_frac=length.computed_frac,
        fixed_s=_fixed_s(time.terms),
        num_evals=evals,
        eval_steps=(request.eval_tokens or 0) / tokens_per_step,
        forward_frac=forward_share(facts.frozen_base, request.checkpointing),
        save_every=request.save_every,
        checkpoint_bytes=facts.checkpoint_bytes,
        load_bytes=facts.load_bytes,
    )
    if request.spot and run.save_every is None:
        run = replace(run, save_every=best_save_every(run, time.step_s, SPOT_LIFETIME_H * HOUR_S))
    return run


def _fixed_s(terms: Mapping[str, float]) -> float:
    return sum(terms.get(name, 0.0) for name in FIXED_TERMS)


def _three(request: Request, time: Time, run: Run, length: RunLength) -> list[dict[str, float]]:
    """Seconds by part: at best, in the middle, at worst."""
    steps = (time.interval.low_s, time.step_s, time.interval.high_s)
    scales = (length.low_frac, 1.0, length.high_frac)
    lives = (SPOT_LIFETIME_LONG_H, SPOT_LIFETIME_H, SPOT_LIFETIME_SHORT_H) if request.spot else (None,) * 3
    return [
        run_seconds(run, step_s, scale, None if life is None else life * HOUR_S)
        for step_s, scale, life in zip(steps, scales, lives)
    ]


def _price(request: Request, gpu: GpuRecord) -> PriceRange | None:
    if request.price is not None:
        return own_price(request.price)
    return price_range(offers_for(gpu.key, request.provider, request.region), request.spot, request.gpus)


def _notes(request: Request, run: Run, facts: Facts) -> list[str]:
    """What was assumed of the run."""
    notes = [_energy_note(facts.power_w)]
    notes.append("checkpoints and the base pass through a disk of 125 MiB/s; downloads are not counted")
    if request.spot:
        notes.append(
            f"spot machines are taken to last {SPOT_LIFETIME_SHORT_H:.1f} to {SPOT_LIFETIME_LONG_H:.0f} h "
            f"({SPOT_LIFETIME_H:.0f} h in the middle), with a checkpoint every {run.save_every:,} steps; no "
            "provider states it"
        )
    return notes


def _age(price: PriceRange) -> list[str]:
    """A warning where the middle price is older than a month."""
    if not price.date or age_days(price.date) <= STALE_DAYS:
        return []
    return [f"this price is more than {STALE_DAYS} days old: `peftplan prices update` adds newer ones"]


def _energy_note(power_w: float | None) -> str:
    drawing = f"{POWER_FRAC:.0%} of their rated power" if power_w is None else f"{power_w:.0f} W as measured here"
    return f"{_ENERGY}{drawing}"


def with_power(cost: Cost, num_gpus: int, power_w: float) -> Cost:
    """The cost with the energy of a measured draw in place of an assumed one."""
    notes = tuple(_energy_note(power_w) if note.startswith(_ENERGY) else note for note in cost.notes)
    energy = energy_kwh(0.0, num_gpus, cost.hours, power_w)
    return cost.model_copy(update={"energy_kwh": energy, "notes": notes})
