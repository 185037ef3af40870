"""Variants of one request, each answered once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftplan import planner
from peftplan.calibrated import calibrated
from peftplan.catalog.calibration import read_calibration
from peftplan.errors import BadInput, PeftplanError
from peftplan.report import Report
from peftplan.request import Request

Fields = Mapping[str, Any]


class Variants:
    """Answers to a request and to its variants, by the closed form and with this machine's calibration.

    A variant is the request as it was asked with some fields set: what was left open follows them.
    """

    def __init__(self, request: Request) -> None:
        if request.engine != "closed":
            raise BadInput(
                f"--engine {request.engine} is too slow to search with; leave it out, and check what is found "
                "with `peftplan trace`"
            )
        self.request = request
        self._calibration = read_calibration()
        self._answers: dict[tuple[tuple[str, Any], ...], Report | None] = {}

    def with_fields(self, fields: Fields) -> Request:
        """The request with these fields set."""
        return self.request.model_copy(update=dict(fields))

    def answer(self, fields: Fields) -> Report | None:
        """The answer to a variant; None for one that contradicts itself."""
        key = tuple(sorted(fields.items()))
        if key not in self._answers:
            try:
                found = planner.estimate(self.with_fields(fields), recipes=False)
                self._answers[key] = calibrated(found, self._calibration)
            except PeftplanError:
                self._answers[key] = None
        return self._answers[key]

    def fits(self, fields: Fields) -> bool:
        """Whether a variant completes on its card."""
        found = self.answer(fields)
        return found is not None and found.gpu is not None and found.gpu.fits

    def fits_surely(self, fields: Fields) -> bool:
        """Whether a variant's whole interval lies within its card."""
        found = self.answer(fields)
        return found is not None and found.gpu is not None and found.gpu.fits and found.gpu.certain
