"""What the literature and practitioners advise, record by record, with its source and the grade of its evidence.

No figure of an answer is made from it. A record says on which runs it bears; what it leaves open bears on all.

Source: lora, qlora, rslora, lora-plus, dora, lora-learns-less, lora-without-regret, lora-without-regret-trl,
rank-one-replication, qlora-code, peft-lora-defaults, merge-unpacked
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict

Evidence = Literal["paper", "default", "report"]

# What the grades mean, as people read them.
EVIDENCE: dict[Evidence, str] = {
    "paper": "a paper's results",
    "default": "a library's or its authors' default",
    "report": "practitioners' report",
}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scope(_Record):
    """On which runs a record bears; every field that is given must hold."""

    methods: tuple[str, ...] | None = None
    methods_not: tuple[str, ...] = ()
    peft_type: str | None = None
    frozen_base: bool | None = None
    packed: bool | None = None
    quants: tuple[str, ...] | None = None
    base_dtypes: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    styles: tuple[str, ...] | None = None
    rank_from: int = 0
    global_batch_from: int = 0
    params_above: int = 0


class Guidance(_Record):
    """One piece of advice: in whose words it stands is said by its source."""

    topic: str
    text: str
    scope: Scope
    source: str
    evidence: Evidence


@lru_cache(maxsize=1)
def all_guidance() -> tuple[Guidance, ...]:
    """Every record, in the order in which topics are shown."""
    text = (files("peftplan.catalog") / "guidance.json").read_text(encoding="utf-8")
    return tuple(Guidance(**record) for record in json.loads(text)["guidance"])
