"""Rows of a recommendation in order: the front of dollars against hours, limits, and why each row stands where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isclose

from peftplan.answers import RecommendRow
from peftplan.report import Cost
from peftplan.units import HOUR_S, format_duration, format_usd


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may cost and how long it may take; None is no limit."""

    budget_usd: float | None
    deadline_s: float | None

    @property
    def any(self) -> bool:
        """Whether there is a limit."""
        return self.budget_usd is not None or self.deadline_s is not None

    def keep(self, usd: float, hours: float) -> bool:
        """Whether dollars and hours keep both limits."""
        in_budget = self.budget_usd is None or usd <= self.budget_usd
        return in_budget and (self.deadline_s is None or hours * HOUR_S <= self.deadline_s)

    def excess(self, usd: float, hours: float) -> float:
        """By which factor the limits are exceeded, the worse of the two; 1 where they are kept."""
        of_budget = 1.0 if self.budget_usd is None else usd / self.budget_usd
        return max(1.0, of_budget, 1.0 if self.deadline_s is None else hours * HOUR_S / self.deadline_s)


def ranked(rows: Sequence[RecommendRow], limits: Limits) -> tuple[list[RecommendRow], int | None]:
    """Rows within the limits by dollars, the others by what they miss, those without a cost; the advised one."""
    better = {id(row): _better(row, rows) for row in rows}
    within = {id(row): row.cost is not None and limits.keep(row.cost.usd, row.cost.hours) for row in rows}
    ordered = sorted(rows, key=lambda row: _place(row, limits))
    advised = _advised([row for row in ordered if within[id(row)]], limits)
    told = [
        row.model_copy(
            update={
                "on_front": row.cost is not None and better[id(row)] is None,
                "within": within[id(row)],
                "reason": "; ".join(_reasons(row, advised, better[id(row)], limits)),
            }
        )
        for row in ordered
    ]
    return told, None if advised is None else next(n for n, row in enumerate(ordered) if row is advised)


def _place(row: RecommendRow, limits: Limits) -> tuple[bool, float, float, float]:
    """What rows are ordered by: those that miss the limits by how far they do."""
    usd, hours = _dollars_and_hours(row)
    return row.cost is None, limits.excess(usd, hours), usd, hours


def _dollars_and_hours(row: RecommendRow) -> tuple[float, float]:
    return (0.0, 0.0) if row.cost is None else (row.cost.usd, row.cost.hours)


def _better(row: RecommendRow, rows: Sequence[RecommendRow]) -> RecommendRow | None:
    """The cheapest row that is as fast and as cheap, one of them more, and as sure to fit."""
    usd, hours = _dollars_and_hours(row)
    found = [
        other
        for other in rows
        if row.cost is not None
        and other.cost is not None
        and (other.cost.usd <= usd or isclose(other.cost.usd, usd))
        and (other.cost.hours <= hours or isclose(other.cost.hours, hours))
        and not (isclose(other.cost.usd, usd) and isclose(other.cost.hours, hours))
        and (other.fit.certain or not row.fit.certain)
    ]
    return min(found, key=_dollars_and_hours, default=None)


def _advised(within: Sequence[RecommendRow], limits: Limits) -> RecommendRow | None:
    """The cheapest that is sure to fit and keeps the limits to the end of its interval, or what comes next."""

    def doubts(row: RecommendRow) -> tuple[bool, bool, float, float]:
        cost = row.cost
        assert cost is not None
        return (not row.fit.certain, not limits.keep(cost.usd_high, cost.hours_high), *_dollars_and_hours(row))

    return min(within, key=doubts, default=None)


def _reasons(
    row: RecommendRow, advised: RecommendRow | None, better: RecommendRow | None, limits: Limits
) -> Iterator[str]:
    """Why a row stands where it does, the weightiest first."""
    cost = row.cost
    if cost is None:
        yield "no step time is known for this card" if row.time is None else "no cost is known"
        return
    yield from _missed(cost, limits)
    if row is advised:
        yield _advice(row, limits)
    elif better is not None and limits.keep(cost.usd, cost.hours):
        yield _beaten(row, better)
    elif limits.keep(cost.usd, cost.hours) and advised is not None:
        yield _against(row, advised)
    if limits.keep(cost.usd, cost.hours):
        yield from _may_miss(cost, limits)
    if not row.fit.certain:
        yield "may not fit: its interval straddles the card's limit"


def _missed(cost: Cost, limits: Limits) -> Iterator[str]:
    """By how much limits are not kept."""
    if limits.deadline_s is not None and cost.hours * HOUR_S > limits.deadline_s:
        yield f"past the deadline by {format_duration(cost.hours * HOUR_S - limits.deadline_s)}"
    if limits.budget_usd is not None and cost.usd > limits.budget_usd:
        yield f"over the budget by {format_usd(cost.usd - limits.budget_usd)}"


def _may_miss(cost: Cost, limits: Limits) -> Iterator[str]:
    """Limits that the middle of the interval keeps and its end does not."""
    if limits.deadline_s is not None and cost.hours_high * HOUR_S > limits.deadline_s:
        yield f"may miss the deadline: up to {format_duration(cost.hours_high * HOUR_S)}"
    if limits.budget_usd is not None and cost.usd_high > limits.budget_usd:
        yield f"may go over the budget: up to {format_usd(cost.usd_high)}"


def _advice(row: RecommendRow, limits: Limits) -> str:
    """What speaks for the advised row, no more than is so."""
    cost = row.cost
    assert cost is not None
    if not limits.any:
        return "advised: the cheapest" + (" that is sure to fit" if row.fit.certain else "")
    named = [name for name, limit in (("budget", limits.budget_usd), ("deadline", limits.deadline_s)) if limit]
    kept = f"keeps the {' and the '.join(named)}"
    if limits.keep(cost.usd_high, cost.hours_high):
        return f"advised: the cheapest that {kept}, to the end of its interval"
    return f"advised: the cheapest that {kept}, by the middle of its interval"


def _beaten(row: RecommendRow, better: RecommendRow) -> str:
    """Whose row is better in dollars and hours, and by how much."""
    assert row.cost is not None
    assert better.cost is not None
    hours, usd = row.cost.hours, row.cost.usd
    gains = []
    if not isclose(hours, better.cost.hours):
        gains.append(f"{format_duration((hours - better.cost.hours) * HOUR_S)} faster")
    if not isclose(usd, better.cost.usd):
        gains.append(f"{format_usd(usd - better.cost.usd)} cheaper")
    return f"{better.num_gpus} x {better.gpu} of {better.provider} is {' and '.join(gains)}"


def _against(row: RecommendRow, advised: RecommendRow) -> str:
    """What a row of the front has for it beside the one that is advised."""
    assert row.cost is not None
    assert advised.cost is not None
    more_usd = row.cost.usd - advised.cost.usd
    less_s = (advised.cost.hours - row.cost.hours) * HOUR_S
    if more_usd >= 0:
        return f"{format_duration(less_s)} faster for {format_usd(more_usd)} more"
    return f"{format_usd(-more_usd)} cheaper, {format_duration(-less_s)} slower"
