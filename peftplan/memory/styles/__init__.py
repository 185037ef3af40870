"""Training styles: a file each, and one name here.

A style says what a batch is and which passes a step makes of it, as operations on the tape; everything that
follows - levels, the allocator, seconds - reads the tape and does not ask for the style.
"""

from __future__ import annotations

from peftplan.memory.styles import classification, grpo, kto, odds, preference, sft
from peftplan.memory.styles.style import Batch, Style

__all__ = ["STYLES", "Batch", "Style"]

STYLES: dict[str, Style] = {
    style.name: style for style in (sft.STYLE, classification.STYLE, preference.DPO, odds.ORPO, kto.KTO, grpo.GRPO)
}
