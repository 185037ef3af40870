"""How far measured runs were from predictions, as small numbers by group: what intervals are made of.

The numbers are fitted from the records and tables under `profiles/` by `profiles/fit_intervals.py`; the file
carries their date and what they were fitted from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("residuals.json")


@dataclass(frozen=True, slots=True)
class Residuals:
    """Below which size `measured / predicted - 1` lay with the stated coverage, in so many configurations.

    `measured`: the configurations were of the kind asked for, on the generation of GPUs asked for; otherwise those
    of all kinds, widened.
    """

    half_frac: float
    configurations: int
    measured: bool


@dataclass(frozen=True, slots=True)
class _Fit:
    coverage: float
    date: str
    least_configurations: int
    widening: float
    groups: dict[tuple[str, str], dict[str, Any]]


def coverage() -> float:
    """The share of measured figures that an interval is to hold."""
    return _fit().coverage


def fit_date() -> str:
    """The day of the newest record that the numbers were fitted from."""
    return _fit().date


def residuals(metric: str, kind: str, compute_capability: tuple[int, int]) -> Residuals:
    """The residuals of a metric for runs of a kind (`full`, `adapters`, `packed`) on a generation of GPUs."""
    fit = _fit()
    own = fit.groups.get((metric, kind))
    generation = ".".join(map(str, compute_capability))
    if own is not None and own["by_compute_capability"].get(generation, 0) >= fit.least_configurations:
        return Residuals(own["half_frac"], own["configurations"], True)
    everything = fit.groups[metric, "all"]
    reach = max(everything["half_frac"] * fit.widening, own["half_frac"] if own is not None else 0.0)
    return Residuals(reach, everything["configurations"], False)


@lru_cache(maxsize=1)
def _fit() -> _Fit:
    raw = json.loads(_FILE.read_text(encoding="utf-8"))
    groups = {(group["metric"], group["kind"]): group for group in raw["groups"]}
    return _Fit(raw["coverage"], raw["date"], raw["least_configurations"], raw["widening"], groups)
