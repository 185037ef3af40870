"""Optimizers: what each keeps for a trainable tensor, and what a step allocates, launches and moves beside it.

An optimizer is a row of one of the tables here, and stands in a file with those of its library or kind.
"""

from __future__ import annotations

from peftplan.optimizers.adam_mini import ADAM_MINI
from peftplan.optimizers.apollo import APOLLO_ROWS
from peftplan.optimizers.bitsandbytes import BITSANDBYTES
from peftplan.optimizers.factored import ADAFACTOR
from peftplan.optimizers.galore import GALORE_ROWS
from peftplan.optimizers.lomo import LOMO
from peftplan.optimizers.muon import MUON
from peftplan.optimizers.row import Foreach, Optimizer, OptimizerOptions, Weight
from peftplan.optimizers.schedule_free import SCHEDULE_FREE
from peftplan.optimizers.torch_rows import TORCH
from peftplan.optimizers.torchao import TORCHAO

__all__ = [
    "ALIASES",
    "OPTIMIZERS",
    "Foreach",
    "Optimizer",
    "OptimizerOptions",
    "Weight",
    "by_any_name",
    "canonical",
]

_TABLES = (
    TORCH,
    (ADAFACTOR, MUON, ADAM_MINI),
    BITSANDBYTES,
    TORCHAO,
    GALORE_ROWS,
    APOLLO_ROWS,
    LOMO,
    SCHEDULE_FREE,
)
OPTIMIZERS: dict[str, Optimizer] = {row.name: row for table in _TABLES for row in table}
ALIASES: dict[str, str] = {alias: row.name for row in OPTIMIZERS.values() for alias in row.aliases}


def by_any_name() -> dict[str, Optimizer]:
    """Every row, under each of its names."""
    return {**OPTIMIZERS, **{alias: OPTIMIZERS[name] for alias, name in ALIASES.items()}}


def canonical(name: str) -> str:
    """The name of a row, from it or another name of it; what is neither comes back as it was, in lower case."""
    key = name.strip().lower().replace("_", "-")
    return ALIASES.get(key, key)
