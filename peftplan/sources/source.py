"""One source, and the releases of the libraries that were read."""

from __future__ import annotations

from dataclasses import dataclass

TORCH = "torch 2.13"
TRANSFORMERS = "transformers 5.23"
PEFT = "peft 0.21"
BITSANDBYTES = "bitsandbytes 0.50"


@dataclass(frozen=True, slots=True)
class Source:
    """One source: `where` is a paper's identifier and section, or the files that were read."""

    title: str
    where: str
    version: str  # a library's version, or a paper's year
