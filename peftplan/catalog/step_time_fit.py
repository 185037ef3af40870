"""The few constants of step time, and how far measured steps lay from what they give.

Fitted from the tables under `profiles/` by `profiles/fit_step_time.py`; the file carries their date and what they
were fitted from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_FILE = Path(__file__).with_name("step_time_fit.json")


@dataclass(frozen=True, slots=True)
class Constants:
    """What kernels reach of a GPU's rates, and what the host takes to launch them.

    `matmul_frac`: of the best matrix product; `flash_frac`, `efficient_frac`: of the same, for flash attention and
    torch's memory-efficient kernel; `bandwidth_frac`: of the memory's peak, for whatever streams; `near_speed`:
    times that, where operands fit into the last cache; `unpack_flop`: fp32 operations that
    unpacking a weight takes as long as; `host_s`: the host's seconds for a launch from Python; `backward_frac`: of
    these, for one of the backward pass; `floor_s`: the GPU's for the smallest.
    """

    matmul_frac: float
    flash_frac: float
    efficient_frac: float
    bandwidth_frac: float
    near_speed: float
    unpack_flop: float
    host_s: float
    backward_frac: float
    floor_s: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Below which size `measured / predicted - 1` lay with the stated coverage, when left out of the fit."""

    half_frac: float
    configurations: int


@dataclass(frozen=True, slots=True)
class StepTimeFit:
    """The file: constants, and the spread of models left out by card, and of cards left out."""

    date: str
    coverage: float
    widening: float
    constants: Constants
    seen: dict[str, Spread]
    unseen: Spread
    models_left_out: dict[str, dict[str, dict[str, float]]]  # by card, then by model; `all` is all of them
    gpus_left_out: dict[str, dict[str, float]]


@lru_cache(maxsize=1)
def step_time_fit() -> StepTimeFit:
    """The shipped fit; read once, on first use."""
    raw = json.loads(_FILE.read_text(encoding="utf-8"))
    return StepTimeFit(
        raw["date"],
        raw["coverage"],
        raw["widening"],
        Constants(**{name: entry["value"] for name, entry in raw["constants"].items()}),
        {gpu: Spread(**entry) for gpu, entry in raw["spread"]["seen"].items()},
        Spread(**raw["spread"]["unseen"]),
        raw["models_left_out"],
        raw["gpus_left_out"],
    )
