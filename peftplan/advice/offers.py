"""Machines that can be rented: of every provider, card and number of cards, the cheapest there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from peftplan.answers import Rented
from peftplan.catalog import GpuRecord, all_gpus, find_gpu
from peftplan.catalog.prices import Offer, offers_for

OWN = "own price"
OWN_COUNTS = (1, 2, 4, 8)


def cards(name: str | None) -> tuple[GpuRecord, ...]:
    """The card that is asked for, or all of the catalogue."""
    found = None if name is None else find_gpu(name)
    return all_gpus() if found is None else (found,)


def cheapest_offers(
    gpu: GpuRecord, counts: Sequence[int], providers: Sequence[str], region: str | None, spot: bool
) -> Iterator[Offer]:
    """By provider and number of cards, the machine that costs least: one is as good as another to the run.

    Only machines that are sold with as many cards: of a machine of eight, eight are paid for.
    """
    best: dict[tuple[str, int], tuple[float, Offer]] = {}
    for offer in offers_for(gpu.key, None, region):
        price = offer.per_gpu(spot)
        if price is None or offer.gpu_count not in counts or (providers and offer.provider not in providers):
            continue
        key = offer.provider, offer.gpu_count
        if key not in best or float(price) < best[key][0]:
            best[key] = float(price), offer
    yield from (offer for _, offer in best.values())


def is_rented_out(gpu: GpuRecord) -> bool:
    """Whether anybody in the catalogue has a price for a card."""
    return bool(offers_for(gpu.key))


def rented(offer: Offer, spot: bool) -> Rented:
    """What an answer says of an offer."""
    price = offer.per_gpu(spot)
    assert price is not None
    return Rented.model_construct(
        instance=offer.instance,
        region=offer.region,
        spot=spot,
        usd_per_gpu_hour=float(price),
        date=offer.date,
        source=offer.source,
        confidence=offer.confidence,
    )


def own_price(usd_per_gpu_hour: float, spot: bool) -> Rented:
    """A price that was stated, of no day."""
    return Rented.model_construct(
        instance="",
        region="",
        spot=spot,
        usd_per_gpu_hour=usd_per_gpu_hour,
        date="",
        source="--price",
        confidence="stated",
    )
