"""Matrix products that GPUs were seen to carry out: flop per second by type, each with its source and date.

A record holds the best of large square products through torch; where a card's power limit lowers its clock under
lasting load, what it then keeps up. fp32 is without TF32, which torch leaves off unless asked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

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
    raws = json.loads(_FILE.read_text(encoding="utf-8"))
    return {
        raw["key"]: MatmulRecord(
            raw["key"],
            *(
                None if raw[f"{dtype}_tflop_per_s"] is None else raw[f"{dtype}_tflop_per_s"] * _TERA
                for dtype in ("fp32", "fp16", "bf16")
            ),
            raw["source"],
            raw["date"],
        )
        for raw in raws
    }
