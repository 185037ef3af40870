"""A figure of an explanation that is no memory: time, money, energy, a rate or a share."""

from __future__ import annotations

from dataclasses import dataclass

from peftplan.units import HOUR_S, format_duration, format_usd


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with its unit; `formula` has its numbers put in, `source` is a key of `sources`, or empty."""

    group: str
    name: str
    value: float
    unit: str  # s, h, usd, kWh, steps, /s or %
    meaning: str = ""
    formula: str = ""
    source: str = ""

    def shown(self) -> str:
        """The value as people read it."""
        match self.unit:
            case "s":
                return f"{self.value * 1000:.3g} ms" if self.value < 1 else format_duration(self.value)
            case "h":
                return format_duration(self.value * HOUR_S)
            case "usd":
                return format_usd(self.value)
            case "steps" | "/s":
                return f"{self.value:,.0f}"
            case "%":
                return f"{self.value:.1f}%"
        return f"{self.value:,.3g} {self.unit}"
