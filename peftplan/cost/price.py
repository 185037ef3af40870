"""What a GPU-hour costs: a price of one's own, or the lowest, median and highest of the catalogue's offers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from peftplan.catalog.prices import Offer


class PriceRange(NamedTuple):
    """USD for one GPU and hour: lowest, middle and highest; whose, and of which day the middle one is."""

    low: float
    middle: float
    high: float
    source: str
    date: str
    notes: tuple[str, ...] = ()


def own_price(usd_per_gpu_hour: float) -> PriceRange:
    """A price that was stated: the same in all three, of no day."""
    return PriceRange(usd_per_gpu_hour, usd_per_gpu_hour, usd_per_gpu_hour, "--price", "")


@lru_cache(maxsize=1024)
def price_range(offers: tuple[Offer, ...], spot: bool, num_gpus: int) -> PriceRange | None:
    """The range of these offers, on demand or spot; None where none has such a price.

    Every offer counts once, whatever its size. The middle is the median: of an even number of prices the mean of
    the two in the middle, and its day the older of theirs.
    """
    priced = sorted(
        ((price, offer) for offer in offers if (price := offer.per_gpu(spot)) is not None),
        key=lambda pair: (pair[0], pair[1].date),
    )
    if not priced:
        return None
    half = (len(priced) - 1) // 2
    middle = priced[half : len(priced) - half]
    return PriceRange(
        low=float(priced[0][0]),
        middle=float(sum(price for price, _ in middle) / len(middle)),
        high=float(priced[-1][0]),
        source=_source([offer for _, offer in priced], spot),
        date=min(offer.date for _, offer in middle),
        notes=tuple(_notes([offer for _, offer in priced], num_gpus)),
    )


def _source(offers: Sequence[Offer], spot: bool) -> str:
    """Whose prices: one machine, or how many of which providers, from the lowest to the highest."""
    kind = "spot" if spot else "on demand"
    if len(offers) == 1:
        return f"{_named(offers[0])}, {kind}"
    providers = len({offer.provider for offer in offers})
    of = f"{providers} providers" if providers > 1 else offers[0].provider
    return f"median of {len(offers)} prices of {of}, {kind}; {_named(offers[0])} to {_named(offers[-1])}"


def _named(offer: Offer) -> str:
    return " ".join(part for part in (offer.provider, offer.instance, offer.region and f"({offer.region})") if part)


def _notes(offers: Sequence[Offer], num_gpus: int) -> list[str]:
    days = sorted({offer.date for offer in offers})
    notes = []
    if len(days) > 1:
        notes.append(f"prices were read between {days[0]} and {days[-1]}")
    ends = (offers[0], offers[-1])
    larger = [f"{offer.gpu_count} x {offer.instance}" for offer in ends if offer.gpu_count > num_gpus]
    if larger:
        few = "one GPU" if num_gpus == 1 else f"{num_gpus} GPUs"
        notes.append(f"sold only with more than {few}: {', '.join(dict.fromkeys(larger))}")
    if any(offer.confidence == "low" for offer in (*ends, offers[(len(offers) - 1) // 2])):
        notes.append("some of these prices are of low confidence: see `peftplan prices`")
    return notes
