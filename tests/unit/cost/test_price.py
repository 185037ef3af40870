"""The price of a GPU-hour: one's own, or the lowest, median and highest of offers."""

from __future__ import annotations

from decimal import Decimal

from peftplan.catalog.prices import Offer
from peftplan.cost.price import own_price, price_range


def offer(
    provider: str, usd: str | None, count: int = 1, spot: str | None = None, day: str = "2026-11-01"
) -> Offer:
    prices = (None if usd is None else Decimal(usd), None if spot is None else Decimal(spot))
    return Offer(provider, "h100", "H100", count, f"{count}x", "", *prices, day, "a list", "high", "")


def test_an_own_price_is_the_same_in_all_three() -> None:
    """What a user states has no range."""
    found = own_price(1.5)
    assert (found.low, found.middle, found.high, found.source) == (1.5, 1.5, 1.5, "--price")


def test_offers_give_lowest_median_and_highest_per_gpu() -> None:
    """A machine of eight counts once, at an eighth of its price."""
    found = price_range((offer("a", "2"), offer("b", "24", 8), offer("c", "9")), False, 8)
    assert found is not None
    assert (found.low, found.middle, found.high) == (2.0, 3.0, 9.0)
    assert found.source == "median of 3 prices of 3 providers, on demand; a 1x to c 1x"


def test_two_prices_in_the_middle_are_averaged_and_the_older_day_told() -> None:
    """An even number of prices has a middle between two."""
    offers = (
        offer("a", "1"),
        offer("b", "2", day="2026-05-20"),
        offer("c", "4", day="2026-09-01"),
        offer("d", "8"),
    )
    found = price_range(offers, False, 1)
    assert found is not None
    assert (found.middle, found.date) == (3.0, "2026-05-20")
    assert any("between 2026-05-20 and 2026-11-01" in note for note in found.notes)


def test_spot_takes_spot_prices_only() -> None:
    """Offers without one do not count; where none has one there is no price."""
    offers = (offer("a", "2"), offer("b", "4", spot="1"))
    found = price_range(offers, True, 1)
    assert found is not None
    assert (found.low, found.middle, found.high) == (1.0, 1.0, 1.0)
    assert price_range(offers[:1], True, 1) is None
    assert price_range((), False, 1) is None


def test_a_price_that_comes_with_more_gpus_says_so() -> None:
    """An hour of one GPU of eight cannot be had alone."""
    offers = (offer("a", "2"), offer("b", "24", 8))
    alone, eight = price_range(offers, False, 1), price_range(offers, False, 8)
    assert alone is not None
    assert eight is not None
    assert any("sold only with more than one GPU: 8 x 8x" in note for note in alone.notes)
    assert not any("sold only" in note for note in eight.notes)
