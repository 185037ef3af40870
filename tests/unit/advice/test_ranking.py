"""Rows in order: the front, limits, and reasons."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftplan.advice.ranking import Limits, ranked
from peftplan.answers import RecommendRow, Rented
from peftplan.report import Cost, GpuFit

FREE = Limits(None, None)


def row(name: str, hours: float, usd: float, certain: bool = True, spread: float = 1.25) -> RecommendRow:
    """A row of this many hours and dollars, each up to a factor more or less."""
    return RecommendRow.model_construct(
        gpu=name,
        num_gpus=1,
        provider="here",
        request={},
        memory=None,
        fit=GpuFit.model_construct(name=name, fits=True, certain=certain, headroom_bytes=0),
        time=None,
        cost=Cost.model_construct(
            hours=hours,
            hours_low=hours / spread,
            hours_high=hours * spread,
            usd=usd,
            usd_low=usd / spread,
            usd_high=usd * spread,
        ),
        rented=Rented.model_construct(),
        on_front=False,
        within=False,
        reason="",
    )


def by_name(rows: list[RecommendRow]) -> dict[str, RecommendRow]:
    return {row.gpu: row for row in rows}


POINTS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.booleans()), min_size=1, max_size=12)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int, bool]]) -> None:
    """A row is on the front exactly where no row that is as sure to fit is at least as fast and as cheap."""
    rows = [row(str(n), hours, usd, certain) for n, (hours, usd, certain) in enumerate(points)]
    for found in ranked(rows, FREE)[0]:
        hours, usd, certain = points[int(found.gpu)]
        beaten = any(
            h <= hours and u <= usd and (h, u) != (hours, usd) and (sure or not certain) for h, u, sure in points
        )
        assert found.on_front is not beaten


@given(POINTS, st.integers(1, 9), st.integers(1, 9))
def test_rows_within_the_limits_come_first_by_dollars(
    points: list[tuple[int, int, bool]], budget: int, hours: int
) -> None:
    """Order, and the advised row, which keeps the limits: the cheapest of the sure ones, if one is sure."""
    rows = [row(str(n), h, usd, certain) for n, (h, usd, certain) in enumerate(points)]
    found, advised = ranked(rows, Limits(budget, hours * 3600))
    keep = [one.cost.usd <= budget and one.cost.hours <= hours for one in found]
    assert [one.within for one in found] == keep == sorted(keep, reverse=True)
    inside = [one.cost.usd for one in found if one.within]
    assert inside == sorted(inside)
    missed = [max(one.cost.usd / budget, one.cost.hours / hours) for one in found if not one.within]
    assert missed == sorted(missed)
    assert (advised is None) is (not any(keep))
    if advised is not None:
        assert found[advised].within
        assert found[advised].fit.certain or not any(one.fit.certain for one in found if one.within)


def test_the_cheapest_is_advised_and_others_say_what_they_are_beside_it() -> None:
    """Reasons: the advised one, a faster one for more money, and one that another beats."""
    found, advised = ranked([row("fast", 2, 30), row("cheap", 8, 10), row("bad", 9, 12)], FREE)
    assert advised == 0
    reasons = {one.gpu: one.reason for one in found}
    assert reasons["cheap"].startswith("advised: the cheapest")
    assert reasons["fast"] == "6 h 0 min faster for $20.00 more"
    assert reasons["bad"] == "1 x cheap of here is 1 h 0 min faster and $2.00 cheaper"


def test_limits_say_by_how_much_they_are_missed() -> None:
    """Past the deadline, over the budget: the row says by how much, and is not advised."""
    found, advised = ranked([row("slow", 14, 5), row("dear", 3, 80), row("right", 8, 20)], Limits(50, 12 * 3600))
    rows = by_name(found)
    assert found[advised].gpu == "right"
    assert rows["slow"].reason == "past the deadline by 2 h 0 min"
    assert rows["dear"].reason == "over the budget by $30.00"
    assert not rows["slow"].within


def test_what_may_miss_a_limit_gives_way_to_what_keeps_it() -> None:
    """A cheaper row whose interval ends beyond the deadline is not advised while another one is sure."""
    found, advised = ranked([row("edge", 11, 10), row("safe", 8, 15)], Limits(None, 12 * 3600))
    rows = by_name(found)
    assert found[advised].gpu == "safe"
    assert rows["edge"].reason == "$5.00 cheaper, 3 h 0 min slower; may miss the deadline: up to 13 h 45 min"


def test_uncertain_fits_give_way_to_sure_ones() -> None:
    """What may run out of memory is told so, is not advised while another fits for sure, and beats nothing sure."""
    found, advised = ranked([row("tight", 2, 5, certain=False), row("roomy", 4, 9)], FREE)
    rows = by_name(found)
    assert found[advised].gpu == "roomy"
    assert rows["roomy"].on_front
    assert "may not fit" in rows["tight"].reason
    _, only = ranked([row("tight", 2, 5, certain=False)], FREE)
    assert only == 0


@pytest.mark.parametrize("timed", [True, False])
def test_rows_without_cost_come_last_and_are_not_ranked(timed: bool) -> None:
    """A card without step time or price is told, behind all others, and is on no front."""
    bare = row("bare", 1, 1).model_copy(update={"cost": None, "time": object() if timed else None})
    found, advised = ranked([bare, row("known", 5, 5)], FREE)
    assert [one.gpu for one in found] == ["known", "bare"]
    assert advised == 0
    assert not found[1].on_front
    assert found[1].reason == ("no cost is known" if timed else "no step time is known for this card")
    assert ranked([bare], FREE)[1] is None
