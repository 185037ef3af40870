"""Matrix products that GPUs were seen to carry out: flop per second by type, each with its source and date.

A record holds the best of large square products through torch; where a card's power limit lowers its clock under
lasting load, what it then keeps up. fp32 is without TF32, which torch leaves off unless asked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("matmul_rates.json")
_TERA = 10**12


@dataclass(frozen=True, slots=True)
class MatmulRecord:
    """One card's measured rates, flop per second; None where nobody measured."""

    key: str
    fp32_flop_per_s: float | None
    fp16_flop_per_s: float | None
    bf16_flop_per_s: float | None
    source: str
    date: str

    def of(self, dtype: str) -> float | None:
        """The rate in a type, by its short name."""
        rates = {"fp32": self.fp32_flop_per_s, "fp16": self.fp16_flop_per_s, "bf16": self.bf16_flop_per_s}
        return rates.get(dtype)


@lru_cache(maxsize=1)
def matmul_records() -> dict[str, MatmulRecord]:
    """Every record by its GPU's key; read once, on first use."""
    raws: list[dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))
    return {
        raw["key"]: MatmulRecord(
            key=raw["key"],
            fp32_flop_per_s=_flop_per_s(raw["fp32_tflop_per_s"]),
            fp16_flop_per_s=_flop_per_s(raw["fp16_tflop_per_s"]),
            bf16_flop_per_s=_flop_per_s(raw["bf16_tflop_per_s"]),
            source=raw["source"],
            date=raw["date"],
        )
        for raw in raws
    }


def _flop_per_s(tflop_per_s: float | None) -> float | None:
    return None if tflop_per_s is None else tflop_per_s * _TERA
