"""Variants of one request, each answered once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from peftplan import planner
from peftplan.calibrated import calibrated
from peftplan.catalog.calibration import read_calibration
from peftplan.errors import BadInput, PeftplanError
from peftplan.memory.intervals import is_certain
from peftplan.memory.repeated import Plays
from peftplan.report import Report
from peftplan.request import Request
from peftplan.resolve import Plan, resolve

Fields = Mapping[str, Any]
Key = tuple[tuple[str, Any], ...]


class Variants:
    """Answers to a request and to its variants, by the closed form and with this machine's calibration.

    A variant is the request as it was asked with some fields set: what was left open follows them. Rough answers
    extrapolate what is reserved, as a large sweep does, and are made for many. `fits` and `fits_surely` are the
    verdict of an estimate, without its figures and the time that these take.
    """

    def __init__(self, request: Request) -> None:
        if request.engine != "closed":
            raise BadInput(
                f"--engine {request.engine} is too slow to search with; leave it out, and check what is found "
                "with `peftplan trace`"
            )
        self.request = request
        self._calibration = read_calibration()
        self._plays = Plays()
        self.plan = resolve(request)
        # what the request contradicts in itself is refused here: a variant that does is only left out
        self._kept: dict[tuple[str, Key], Any] = {("rough", ()): self._report(request, self._plays)}

    def asked(self, field: str) -> Any:
        """A field of the request, its default filled in; a model that came as a mapping by its name."""
        found = getattr(self.plan.request, field)
        return self.plan.found.id if isinstance(found, dict) else found

    def answer(self, fields: Fields) -> Report | None:
        """The estimate of a variant; None for one that contradicts itself."""
        found: Report | None = self._once("answer", fields, lambda request: self._report(request, None))
        return found

    def rough(self, fields: Fields) -> Report | None:
        """The same with reserved memory extrapolated, many times faster."""
        found: Report | None = self._once("rough", fields, lambda request: self._report(request, self._plays))
        return found

    def checked(self, fields: Fields, of_memory: Fields) -> Report | None:
        """A rough answer whose verdict is that of an estimate where its interval straddles the card's limit.

        `of_memory` are the fields that memory depends on: variants that have them in common share a verdict.
        """
        found = self.rough(fields)
        if found is None or found.gpu is None or found.gpu.certain:
            return found
        fits, headroom = self.fits(of_memory), found.gpu.headroom_bytes
        headroom = max(headroom, 0) if fits else min(headroom, -1)
        return found.model_copy(
            update={"gpu": found.gpu.model_copy(update={"fits": fits, "headroom_bytes": headroom})}
        )

    def fits(self, fields: Fields, roughly: bool = False) -> bool:
        """Whether a variant completes on its card."""
        return bool(self._once(f"fits {roughly}", fields, lambda request: self._fits(request, roughly)))

    def fits_surely(self, fields: Fields, roughly: bool = False) -> bool:
        """Whether a variant's whole interval lies within its card."""
        if not self.fits(fields, roughly):
            return False
        return bool(self._once(f"surely {roughly}", fields, lambda request: self._is_certain(request, roughly)))

    def _once(self, grade: str, fields: Fields, ask: Callable[[Request], Any]) -> Any:
        """What was found the first time; None where the variant contradicts itself."""
        key = grade, tuple(sorted(fields.items()))
        if key not in self._kept:
            try:
                self._kept[key] = ask(self.request.model_copy(update=dict(fields)))
            except PeftplanError:
                self._kept[key] = None
        return self._kept[key]

    def _report(self, request: Request, plays: Plays | None) -> Report:
        found = planner.estimate(request, recipes=False, breakdown=False, plays=plays)
        return calibrated(found, self._calibration)

    def _is_calibrated(self, plan: Plan) -> bool:
        return self._calibration is not None and plan.gpu is not None and plan.gpu.key in self._calibration.gpus

    def _fits(self, request: Request, roughly: bool) -> bool:
        plan = resolve(request)
        if self._is_calibrated(plan):
            gpu = self._report(request, self._plays if roughly else None).gpu
            return gpu is not None and gpu.fits
        return plan.gpu is not None and planner.completes_on(plan.gpu, plan, self._settled(plan, roughly))

    def _is_certain(self, request: Request, roughly: bool) -> bool:
        """Of a variant that fits."""
        plan = resolve(request)
        if self._is_calibrated(plan):
            gpu = self._report(request, self._plays if roughly else None).gpu
            return gpu is not None and gpu.certain
        interval = planner.memory_of(plan, self._settled(plan, roughly)).interval
        return plan.gpu is not None and is_certain(
            True, interval.low_bytes, interval.high_bytes, plan.gpu.usable_bytes
        )

    def _settled(self, plan: Plan, roughly: bool) -> planner.Settled:
        return planner.settle(plan, self._plays if roughly else None)
