"""`recommend`: which cards, how many and whose, as a front of dollars against hours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from peftplan.advice.ask import Fields, Variants
from peftplan.advice.offers import OWN, OWN_COUNTS, cards, cheapest_offers, is_rented_out, own_price, rented
from peftplan.advice.ranking import Limits, ranked
from peftplan.answers import RecommendReport, RecommendRow, Rented, Unfit
from peftplan.catalog import GpuRecord
from peftplan.catalog.prices import STALE_DAYS, age_days, check_region, find_provider
from peftplan.errors import BadInput, shown
from peftplan.report import MemoryFigures, Report
from peftplan.request import Request
from peftplan.units import MILLION

MAX_GPUS = 8
MOST_DOUBLINGS = 6
ASSUMED_TOKENS = 10 * MILLION  # of a run whose length is not given


@dataclass(frozen=True, slots=True)
class _Found:
    """What became of the cards."""

    rows: list[RecommendRow]
    unfit: list[Unfit]
    unpriced: list[str]
    untimed: list[str]


def recommend(
    request: Request,
    *,
    budget_usd: float | None = None,
    deadline_s: float | None = None,
    providers: Sequence[str] = (),
    max_gpus: int = MAX_GPUS,
    tune_batch: bool = False,
) -> RecommendReport:
    """Ways to carry the run out: every card of the catalogue, in every number in which it is rented out.

    Each card does what the request asks of one: with several, a step takes more tokens, and the run fewer steps,
    its tokens being the same. A card that the run does not fit is not ranked. `gpu` and `gpus` of the request, and
    its `provider`, `region` and `price`, leave only these; `spot` takes interruptible machines. With `tune_batch`
    every card takes the micro-batch that fills it (`_tuned`).
    """
    limits = _checked(request, budget_usd, deadline_s, max_gpus)
    asked, assumed = request, not _has_length(request)
    if assumed:
        if limits.any:
            raise BadInput(
                "--budget and --deadline are of a whole run, and its length is not known; give --tokens, "
                "--examples or --data"
            )
        asked = request.model_copy(update={"tokens": ASSUMED_TOKENS})
    names = [find_provider(name) for name in (*providers, *([request.provider] if request.provider else ()))]
    variants = Variants(asked)
    if request.region is not None:
        check_region(request.region, names[0] if len(names) == 1 else None)
    found = _gone_through(variants, names, max_gpus, tune_batch)
    rows, recommended = ranked(found.rows, limits)
    return RecommendReport.model_construct(
        request=variants.plan.request.model_dump(),
        num_tokens=next((row.cost.num_tokens for row in rows if row.cost is not None), None),
        assumed_tokens=assumed,
        budget_usd=budget_usd,
        deadline_s=deadline_s,
        recommended=recommended,
        rows=tuple(rows),
        unfit=tuple(sorted(found.unfit, key=lambda one: one.short_bytes)),
        unpriced=tuple(found.unpriced),
        notes=(*(_tuning_note(request) if tune_batch else ()), *_notes(rows, found, request, assumed)),
    )


def _checked(request: Request, budget_usd: float | None, deadline_s: float | None, max_gpus: int) -> Limits:
    """The limits; what cannot be one is refused."""
    for flag, value in (("--budget", budget_usd), ("--deadline", deadline_s), ("--max-gpus", max_gpus)):
        if value is not None and not 0 < value < float("inf"):
            raise BadInput(f"{flag} {shown(value)} is not allowed; give a number above 0")
    if request.price is not None and request.gpu is None:
        raise BadInput("--price is of one card, and recommend compares many; name it with --gpu")
    if request.price is not None and request.provider is not None:
        raise BadInput("--price and --provider exclude each other; leave one out")
    return Limits(budget_usd, deadline_s)


def _has_length(request: Request) -> bool:
    return any(value is not None for value in (request.tokens, request.examples, request.data))


def _counts(request: Request, max_gpus: int) -> tuple[int, ...]:
    """Numbers of cards: as asked, or all up to the most."""
    return (request.gpus,) if request.gpus > 1 else tuple(range(1, max_gpus + 1))


def _gone_through(variants: Variants, providers: Sequence[str], max_gpus: int, tune_batch: bool) -> _Found:
    """Every card and its offers, answered."""
    found = _Found([], [], [], [])
    counts = _counts(variants.request, max_gpus)
    for gpu in cards(variants.request.gpu):
        offers = list(_offers(variants.request, gpu, providers, counts))
        if not offers:
            one = {"gpu": gpu.key, "gpus": counts[0]}
            answer = None if is_rented_out(gpu) else variants.checked(one, of_memory=one)
            if answer is not None and answer.gpu is not None and answer.gpu.fits:
                found.unpriced.append(gpu.key)
            continue
        unfit: set[int] = set()
        for provider, count, machine in offers:
            held = {"gpu": gpu.key, "gpus": count}
            row = _row(variants, {**held, **_tuned(variants, held)} if tune_batch else held, provider, machine)
            if isinstance(row, RecommendRow):
                found.rows.append(row)
                if row.time is None and gpu.key not in found.untimed:
                    found.untimed.append(gpu.key)
            elif row is not None and count not in unfit:
                unfit.add(count)
                found.unfit.append(row)
    return found


def _offers(
    request: Request, gpu: GpuRecord, providers: Sequence[str], counts: Sequence[int]
) -> Iterator[tuple[str, int, Rented]]:
    """Provider, number of cards and price."""
    if request.price is not None:
        yield from (
            (OWN, count, own_price(request.price, request.spot))
            for count in counts
            if count in OWN_COUNTS or len(counts) == 1
        )
        return
    for offer in cheapest_offers(gpu, counts, providers, request.region, request.spot):
        yield offer.provider, offer.gpu_count, rented(offer, request.spot)


def _tuned(variants: Variants, held: Fields) -> dict[str, int]:
    """The micro-batch of a card: doubled as often as it is sure to fit.

    With gradient accumulation the tokens of a step stay, and there are fewer micro-batches; without, they grow
    up to `MOST_DOUBLINGS`.
    """
    size, more = int(variants.asked("micro_batch")), int(variants.asked("grad_accum"))
    fields = {"micro_batch": size, "grad_accum": more}
    for _ in range(MOST_DOUBLINGS):
        size *= 2
        if variants.asked("grad_accum") > 1:
            if more % 2:
                break
            more //= 2
        larger = {"micro_batch": size, "grad_accum": more}
        if not variants.fits_surely({**held, **larger}, roughly=True):
            break
        fields = larger
    return fields


def _row(variants: Variants, held: Fields, provider: str, machine: Rented) -> RecommendRow | Unfit | None:
    """The answer for one machine: a row that is ranked later on, or a card that does not hold the run."""
    answer = variants.checked({**held, "price": machine.usd_per_gpu_hour}, of_memory=held)
    if answer is None or answer.gpu is None:
        return None
    if not answer.gpu.fits:
        return Unfit.model_construct(
            gpu=held["gpu"],
            num_gpus=held["gpus"],
            short_bytes=-answer.gpu.headroom_bytes,
            certain=answer.gpu.certain,
        )
    cost = answer.cost
    if cost is not None and machine.date:
        cost = cost.model_copy(update={"price_source": _source(provider, machine), "price_date": machine.date})
    return RecommendRow.model_construct(
        gpu=held["gpu"],
        num_gpus=held["gpus"],
        provider=provider,
        request=answer.request,
        memory=_figures(answer),
        fit=answer.gpu,
        time=answer.time,
        cost=cost,
        rented=machine,
        on_front=False,
        within=False,
        reason="",
    )


def _source(provider: str, machine: Rented) -> str:
    """Whose machine, in words."""
    where = " ".join(
        part for part in (provider, machine.instance, machine.region and f"({machine.region})") if part
    )
    return f"{where}, {'spot' if machine.spot else 'on demand'}"


def _figures(answer: Report) -> MemoryFigures:
    """An answer's memory without the parts of its peak."""
    return MemoryFigures.model_construct(
        **{name: getattr(answer.memory, name) for name in MemoryFigures.model_fields}
    )


def _tuning_note(request: Request) -> Iterator[str]:
    """What a tuned micro-batch changes of the training."""
    if request.grad_accum > 1:
        yield "each card takes the largest micro-batches that are sure to fit, as many as make the batch of a step"
    else:
        yield (
            "each card takes the largest micro-batch that is sure to fit, so that a step's batch differs from row "
            "to row; --grad-accum states how many micro-batches make the step that is to be kept"
        )


def _notes(rows: Sequence[RecommendRow], found: _Found, request: Request, assumed: bool) -> Iterator[str]:
    """What holds for all rows."""
    if assumed:
        yield (
            f"the run's length is not given: hours and dollars are those of {ASSUMED_TOKENS:,} tokens; "
            "--tokens, --examples or --data give it"
        )
    if any(row.num_gpus > 1 for row in rows):
        yield (
            "several cards each take the micro-batch as asked: the run's tokens stay the same, a step has more of "
            "them, and there are fewer steps - the learning rate may want to follow"
        )
    if rows:
        yield (
            "reserved and device memory of the rows are extrapolated, as in a large sweep; where that leaves it "
            "open whether a card holds the run, every block was replayed"
        )
    days = sorted({row.rented.date for row in rows if row.rented.date})
    if days:
        between = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
        age = age_days(days[0])
        old = f", the oldest {age} days old: `peftplan prices update` renews them" if age > STALE_DAYS else ""
        yield f"prices were read on {between}{old}; each provider's cheapest machine of a kind"
    if request.spot:
        yield "spot machines can be taken away at any time; hours allow for it, and prices change by the hour"
    if found.untimed:
        yield f"no step time is known for {', '.join(found.untimed)}: not ranked"
    if found.unpriced:
        yield f"also hold the run, without a price in the catalogue: {', '.join(found.unpriced)}"
    if not rows and not found.unfit:
        yield "no offer of the catalogue matches; see `peftplan prices`"
