"""Trained tensors as an optimizer meets them: in which type, in which group, in which order.

Source: transformers-trainer (what weight decay leaves out, and embeddings whose 8-bit states it keeps wide).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from peftplan.memory.graph import Record
from peftplan.memory.tape import Engine
from peftplan.optimizers import Optimizer
from peftplan.specs.formats import FP32, DType
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Embedding, LayerNorm
from peftplan.specs.tensors import Parameter

_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained tensor, `count` times in the model; `dtype` is that of what the optimizer updates."""

    parameter: Parameter
    count: int
    dtype: DType
    decayed: bool  # Trainer puts it among those that decay; other loops have one group
    wide: bool  # an embedding of Trainer's, whose states bitsandbytes keeps in 32 bits

    def states(self, optimizer: Optimizer) -> list[int]:
        """Bytes of each tensor that the optimizer keeps for this one on the device."""
        kept = optimizer.wide_states if self.wide and optimizer.wide_states else optimizer.states
        return kept(self.parameter.shape, self.dtype)

    def paged_bytes(self, optimizer: Optimizer) -> int:
        """Bytes that it keeps in managed memory."""
        paged = optimizer.wide_paged if self.wide and optimizer.wide_states else optimizer.paged
        return paged(self.parameter.shape, self.dtype)


def trained_tensors(model: ModelSpec, master_weights: bool, trainer: bool) -> list[Trained]:
    """Every trained tensor once, as they are met, with how often it stands in the model."""
    found: dict[int, Trained] = {}
    for owner, count, prefix in model.groups():
        for path, module in owner.walk(prefix):
            for name, parameter in module.parameters.items():
                if parameter.edge is None or id(parameter) in found:
                    continue
                dtype = FP32 if master_weights else parameter.dtype
                decayed = trainer and _decayed(f"{path}.{name}".lower(), module)
                wide = trainer and not master_weights and isinstance(module, Embedding)
                found[id(parameter)] = Trained(parameter, count, dtype, decayed, wide)
    order = {id(parameter): place for place, (parameter, _) in enumerate(in_order(model))}
    return sorted(found.values(), key=lambda row: order[id(row.parameter)])


def by_type(trained: list[Trained]) -> list[list[Trained]]:
    """The groups that foreach functions take one after another: of the types, the one met last comes first.

    Source: torch-foreach (ForeachUtils.h: a hash map, whose newest entry is read first).
    """
    groups: dict[str, list[Trained]] = {}
    for row in trained:
        groups.setdefault(row.dtype.short, []).append(row)
    return list(groups.values())[::-1]


def _decayed(name: str, module: object) -> bool:
    return not isinstance(module, LayerNorm) and not _NOT_DECAYED.search(name)


def loop_records(model: ModelSpec, optimizer: Optimizer, trained: list[Trained]) -> list[Record]:
    """The tensors that the optimizer's loop holds at its worst; none where it has no loop."""
    if optimizer.step is None:
        return []
    rows = {id(row.parameter): row for row in trained}
    order = [rows[id(parameter)] for parameter, _ in in_order(model)]
    t = Engine()
    # groups of parameters follow one another: first those that decay
    for_step = sorted(order, key=lambda row: not row.decayed)
    optimizer.step(t, [(row.parameter.shape, row.dtype) for row in for_step])
    t.mark("end")
    worst = t.segments[0].peak_clock
    return [record for record in t.records if record.born <= worst < record.died]


def in_order(model: ModelSpec) -> Iterator[tuple[Parameter, int]]:
    """Trained tensors as an optimizer meets them, and how often: embeddings, blocks, what follows them.

    Of blocks that are alike all but the last come together, and then the last: every pair of neighbours is seen.
    """
    stem = list(model.stem.walk())
    met: set[int] = set()
    for embeddings in (True, False):
        for _, module in stem:
            for parameter in module.parameters.values():
                if isinstance(module, Embedding) is embeddings and parameter.edge and id(parameter) not in met:
                    met.add(id(parameter))
                    yield parameter, 1
        for run in model.runs if embeddings else ():
            for count in (run.count - 1, 1) if run.count > 1 else (1,):
                for _, parameter in run.block.named_parameters():
                    if parameter.edge:
                        yield parameter, count
