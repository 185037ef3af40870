"""Units: the only place that knows powers of 1024 and of 1000.

Bytes are integers inside the package and become GiB (2**30) only when printed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fractions import Fraction

KIB = 1024
MIB = 1024**2
GIB = 1024**3
GB = 10**9  # the unit printed on a GPU's box; never used for measured memory
MILLION = 10**6
BILLION = 10**9
HOUR_S = 3600
DAY_S = 86400

_COUNTS = {"": 1, "k": 1000, "m": MILLION, "b": BILLION, "g": BILLION, "t": 10**12}
_DURATIONS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": HOUR_S, "hr": HOUR_S, "d": DAY_S}
_SIZES = {"b": 1, "": 1}
_SIZES |= {f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)}
_SIZES |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)}
_LONGEST = 40  # characters of a number; what is longer is no quantity of anything


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def format_bytes(num_bytes: int) -> str:
    """`num_bytes` as GiB, MiB, KiB or bytes, whichever reads best: `12.34 GiB`."""
    size = abs(num_bytes)
    if size >= GIB // 10:
        return f"{num_bytes / GIB:,.2f} GiB"
    if size >= MIB // 10:
        return f"{num_bytes / MIB:,.2f} MiB"
    if size >= KIB:
        return f"{num_bytes / KIB:,.1f} KiB"
    return f"{num_bytes} B"


def format_count(count: int) -> str:
    """A number of parameters, tokens or examples for people: `8.03 B`, `41.94 M`, `512`."""
    if count >= BILLION:
        return f"{count / BILLION:,.2f} B"
    if count >= MILLION:
        return f"{count / MILLION:,.2f} M"
    if count >= 10_000:
        return f"{count / 1000:,.1f} k"
    return str(count)


def format_duration(seconds: float) -> str:
    """Seconds for people: `3 d 4 h`, `3 h 12 min`, `12 min`, `4.2 s`."""
    if seconds < 59.95:  # what is less rounds to 59.9
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 2 * 24 * 60:
        return f"{minutes // 60:,} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24:,} d {hours % 24} h"


def format_usd(amount: float) -> str:
    """Dollars for people: `$4.18`, `$0.0042`, `$1,240`."""
    if 0 < amount < 0.1:
        return f"${amount:.2g}"
    return f"${amount:,.2f}" if amount < 1000 else f"${amount:,.0f}"


def parse_count(text: str) -> int:
    """A count as people write it, `50M`, `2.5B`, `10k` or `1200`; ValueError for anything else."""
    count = _quantity(text, _COUNTS)
    if count.denominator != 1:
        raise ValueError(text)
    return int(count)


def parse_duration_s(text: str) -> float:
    """Seconds of `12h`, `90m`, `2d`, `1h30m` or `45s`; a bare number has no unit and is refused."""
    parts = re.findall(r"[0-9.]+ *[a-z]+ *", text.strip().lower())
    if not parts or "".join(parts) != text.strip().lower():
        raise ValueError(text)
    return float(sum(_quantity(part, _DURATIONS) for part in parts))


def parse_size_bytes(text: str) -> int:
    """Bytes of `24GiB` (2**30), `24GB` (10**9), `512MiB` or `1024`; fractions of a byte are cut."""
    return int(_quantity(text, _SIZES))


def _quantity(text: str, units: dict[str, int]) -> Fraction:
    """A number without sign and exponent, and a unit of the table behind it."""
    from fractions import Fraction  # only a word with a unit pays for its import

    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) *([a-z]*)", text.strip().lower(), re.ASCII)
    if found is None or len(text) > _LONGEST or found[2] not in units:
        raise ValueError(text)
    return Fraction(found[1]) * units[found[2]]
