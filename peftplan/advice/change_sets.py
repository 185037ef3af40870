"""Sets of changes that make a run fit: the least risk first, and within it the least time.

All changes of a level of risk are made, and then taken back as far as the run still fits, the slowest first; a
single change that does it for less comes before what is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from peftplan.advice.ask import Variants
from peftplan.answers import ChangeSet, PricedChange, Reason
from peftplan.changes import LADDERS, RISKS, SingleChange, change_groups, highest
from peftplan.report import Report

# Changes by the field that they are about; in the order of the groups.
Chosen = tuple[tuple[str, SingleChange], ...]
Groups = Mapping[str, list[SingleChange]]


def change_sets(variants: Variants, asked: Report) -> Iterator[ChangeSet]:
    """Sets that make the run fit, the one of least risk first.

    Where it is not sure to fit, one that is follows, if there is one; where times are known, one that risks more
    and is faster. Where no set is enough, the one that saves most is told.
    """
    search = _Search(variants, asked)
    level, least = search.first(sure=False)
    if least is None:
        everything = search.saving(search.all_of(search.groups_up_to(len(RISKS) - 1)))
        if everything:
            yield search.told(everything, "not enough")
        return
    told = search.told(least, "least risk")
    yield told
    if not told.certain:
        _, sure = search.first(sure=True)
        if sure is not None:
            yield search.told(sure, "sure")
    if told.adds_s is not None:
        _, faster = search.first(sure=told.certain, after=level)
        if faster is not None:
            other = search.told(faster, "faster")
            if other.adds_s is not None and other.adds_s < told.adds_s:
                yield other


@dataclass(frozen=True, slots=True)
class _Made:
    """A run with changes made: what must be held, and seconds of a step of as many tokens as asked."""

    answer: Report
    held_bytes: int
    step_s: float | None


class _Search:
    """Sets of changes of one request."""

    def __init__(self, variants: Variants, asked: Report) -> None:
        self.variants, self.asked = variants, asked
        self.tokens = _tokens_of_a_step(asked.request)
        self.groups = change_groups(asked.request)
        self.order = list(self.groups)
        self.sure = False  # whether a run fits only where its whole interval does

    def made(self, chosen: Chosen, roughly: bool = True) -> _Made | None:
        """The run with these changes; None if they contradict each other or the request.

        What must be held is extrapolated where roughly is enough: to compare sets.
        """
        ask = self.variants.rough if roughly else self.variants.answer
        answer = ask(self._fields(chosen))
        if answer is None or answer.gpu is None:
            return None
        step_s = None
        if answer.time is not None:
            step_s = answer.time.step_s * self.tokens / _tokens_of_a_step(answer.request)
        return _Made(answer, answer.gpu.usable_bytes - answer.gpu.headroom_bytes, step_s)

    def _fields(self, chosen: Chosen) -> dict[str, Any]:
        """What the changes set: a method's fields before those that they fill in."""
        ordered = sorted(chosen, key=lambda pair: self.order.index(pair[0]))
        return {name: value for _, change in ordered for name, value in change.fields.items()}

    def groups_up_to(self, level: int) -> Groups:
        """Changes of no more than a level of risk; of a field's, those that go with the request."""
        groups = {
            field: [change for change in changes if RISKS.index(change.risk) <= level]
            for field, changes in self.groups.items()
        }
        return {field: found for field, changes in groups.items() if (found := self._allowed(field, changes))}

    def _allowed(self, field: str, changes: list[SingleChange]) -> list[SingleChange]:
        if field in LADDERS:  # rungs are allowed all or none
            return changes if changes and self.made(((field, changes[-1]),)) is not None else []
        return [change for change in changes if self.made(((field, change),)) is not None]

    def all_of(self, groups: Groups) -> Chosen:
        """Of every group the change that leaves least to be held, one group after another."""
        chosen: Chosen = ()
        for field, changes in groups.items():
            tried = changes[-1:] if field in LADDERS else changes
            held = [self._held((*chosen, (field, change))) for change in tried]
            if min(held) <= self._held(chosen):
                chosen = (*chosen, (field, tried[held.index(min(held))]))
        return chosen

    def saving(self, chosen: Chosen) -> Chosen:
        """The changes of a set without which more would have to be held."""
        for field, _ in chosen:
            if self._held(_without(chosen, field)) <= self._held(chosen):
                chosen = _without(chosen, field)
        return chosen

    def first(self, sure: bool, after: int = -1) -> tuple[int, Chosen | None]:
        """The lowest level of risk, above one, that has a set which fits, or does so for sure; and its cheapest."""
        self.sure = sure
        before = self.groups_up_to(after)
        for level in range(after + 1, len(RISKS)):
            groups = self.groups_up_to(level)
            chosen = None if groups == before else self.cheapest(groups)
            if chosen is not None:
                return level, chosen
            before = groups
        return len(RISKS), None

    def cheapest(self, groups: Groups) -> Chosen | None:
        """The cheapest set that was found to fit: none of its changes is to spare. None if all together do not."""
        everything = self.all_of(groups)
        if not self._fits(everything):
            return None
        found = self._weakened(self._thinned(everything), groups)
        singles: list[Chosen] = [((field, change),) for field, changes in groups.items() for change in changes]
        cheaper = sorted((one for one in singles if self._cost(one) < self._cost(found)), key=self._cost)
        return next((one for one in cheaper if self._fits(one)), found)

    def _thinned(self, chosen: Chosen) -> Chosen:
        """A set that fits without the changes that it can spare, the slowest first."""
        slowest = sorted(chosen, key=lambda pair: self._cost(_without(chosen, pair[0])))
        for field, _ in slowest:
            if self._fits(_without(chosen, field)):
                chosen = _without(chosen, field)
        return chosen

    def _weakened(self, chosen: Chosen, groups: Groups) -> Chosen:
        """The set with cheaper changes of the same fields, where these are enough."""
        for field, change in chosen:
            weaker = [_with(chosen, field, other) for other in groups[field] if other is not change]
            cheaper = [other for other in weaker if self._cost(other) < self._cost(chosen)]
            fitting = (other for other in sorted(cheaper, key=self._cost) if self._fits(other))
            chosen = next(fitting, chosen)
        return self._thinned(chosen)

    def _fits(self, chosen: Chosen) -> bool:
        """Whether the run with these changes fits, or does so for sure: not roughly."""
        fields = self._fields(chosen)
        return self.variants.fits_surely(fields) if self.sure else self.variants.fits(fields)

    def _held(self, chosen: Chosen) -> float:
        found = self.made(chosen)
        return float("inf") if found is None else found.held_bytes

    def _cost(self, chosen: Chosen) -> tuple[float, int]:
        """Seconds of a step - without them, places in the order of changes - and the number of changes."""
        found = self.made(chosen)
        if found is None:
            return float("inf"), len(chosen)
        places = sum(self.order.index(field) for field, _ in chosen)
        return float(places) if found.step_s is None else found.step_s, len(chosen)

    # ---- what is told of a set

    def told(self, chosen: Chosen, why: Reason) -> ChangeSet:
        """The set, change by change: always the one next that saves most beside those before it."""
        start = before = self.made((), roughly=False)
        done: Chosen = ()
        left, priced = list(chosen), []
        while left:
            held = [self._held((*done, pair)) for pair in left]
            pair = left.pop(held.index(min(held)))
            done = (*done, pair)
            after = self.made(done, roughly=False)
            assert before is not None
            assert after is not None
            priced.append(_priced(pair[1], before, after))
            before = after
        assert start is not None
        assert before is not None
        gpu = before.answer.gpu
        assert gpu is not None
        return ChangeSet.model_construct(
            why=why,
            risk=highest(change.risk for change in priced),
            changes=tuple(priced),
            fits=gpu.fits,
            certain=gpu.certain,
            headroom_bytes=gpu.headroom_bytes,
            adds_s=_difference(before.step_s, start.step_s),
            adds_usd=_difference(_usd(before.answer), _usd(start.answer)),
            request=before.answer.request,
        )


def _priced(change: SingleChange, before: _Made, after: _Made) -> PricedChange:
    """One change as the difference of the runs before and after it."""
    adds_s = _difference(after.step_s, before.step_s)
    return PricedChange.model_construct(
        change=change.text,
        saves_bytes=before.held_bytes - after.held_bytes,
        adds_s=adds_s,
        adds_frac=adds_s / before.step_s if adds_s is not None and before.step_s else None,
        adds_usd=_difference(_usd(after.answer), _usd(before.answer)),
        risk=change.risk,
    )


def _usd(answer: Report) -> float | None:
    return None if answer.cost is None else answer.cost.usd


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _tokens_of_a_step(request: Mapping[str, Any]) -> int:
    return int(request["micro_batch"] * request["grad_accum"] * request["seq_len"])


def _without(chosen: Chosen, field: str) -> Chosen:
    return tuple(pair for pair in chosen if pair[0] != field)


def _with(chosen: Chosen, field: str, change: SingleChange) -> Chosen:
    return tuple((name, change if name == field else made) for name, made in chosen)
