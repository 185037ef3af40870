"""Figures that circulate about fine-tuning, each with the run it speaks of and how peftplan asks for it.

A claim's `formula` is plain arithmetic on figures of its runs: `run.weights`, `2 * run.params`. The ending of a
figure's name says its unit: `_gb` is 10^9 bytes, as the texts have it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from peftplan.errors import NotFound, shown

PATH = Path(__file__).with_name("claims.json")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClaimedFigure(_Frozen):
    """One figure: what is claimed, a range or None where the figure is only set beside it, and the formula."""

    name: str
    claimed: float | tuple[float, float] | None
    formula: str


class Claim(_Frozen):
    """One claim. `finding`: whether peftplan's figures agree; `verdict`: what plain arithmetic already shows.

    `runs` are requests by the name that formulas call them by; one whose model is a list is asked for every model.
    `matrices` are (inputs, outputs, rank) of a single adapted matrix, `storages` quantised formats: kind, weights
    that share a scale, whether scales are quantised too.
    """

    id: str
    text: int
    run: str
    finding: Literal["holds", "roughly", "wrong"]
    reason: str
    verdict: str = ""
    runs: dict[str, dict[str, Any]] = {}
    matrices: dict[str, tuple[int, int, int]] = {}
    storages: dict[str, tuple[str, int, bool]] = {}
    figures: tuple[ClaimedFigure, ...]
    also: tuple[ClaimedFigure, ...] = ()


@lru_cache(maxsize=1)
def all_claims() -> tuple[Claim, ...]:
    """Every claim, in the order of the texts."""
    return tuple(Claim.model_validate(record) for record in _document()["claims"])


def claims_source() -> str:
    """What the texts are."""
    return str(_document()["source"])


def find_claim(name: str) -> Claim:
    """A claim by its id, case and underscores apart; an unknown one gets the nearest."""
    key = name.strip().lower().replace("_", "-")
    claims = {claim.id: claim for claim in all_claims()}
    if key in claims:
        return claims[key]
    from difflib import get_close_matches

    near = get_close_matches(key, claims, 3, 0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise NotFound(f"--claim {shown(name)} is no claim of the catalogue{hint} (all: `peftplan explain --claims`)")


@lru_cache(maxsize=1)
def _document() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
    return value
