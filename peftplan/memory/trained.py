"""Trained tensors as an optimizer meets them: in which type, in which group, in which order.

Source: transformers-trainer (what weight decay leaves out, and embeddings whose 8-bit states it keeps wide).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from peftplan.errors import BadInput
from peftplan.memory.graph import Record
from peftplan.memory.tape import Engine
from peftplan.optimizers.asked import FOR_WHOLE_MODELS, refusal
from peftplan.optimizers.chosen import Chosen, chosen
from peftplan.optimizers.row import Optimizer, Weight
from peftplan.specs.formats import FP32, DType
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Conv1D, Embedding, LayerNorm, Linear, Module
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Parameter

_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained tensor, `count` times in the model; `weight` is what the optimizer updates."""

    parameter: Parameter
    count: int
    weight: Weight
    decayed: bool  # Trainer puts it among those that decay; other loops have one group

    @property
    def dtype(self) -> DType:
        """The type of what the optimizer updates."""
        return self.weight.dtype


def trained_tensors(model: ModelSpec, step: StepSpec) -> list[Trained]:
    """Every trained tensor once, as they are met, with how often it stands in the model."""
    found: dict[int, Trained] = {}
    for owner, count, prefix in model.groups():
        for path, module in owner.walk(prefix):
            for name, parameter in module.parameters.items():
                if parameter.edge is None or id(parameter) in found:
                    continue
                full = f"{path}.{name}"
                decayed = step.trainer and _decayed(full.lower(), module)
                found[id(parameter)] = Trained(
                    parameter, count, _weight(model, step, full, module, parameter), decayed
                )
    order = {id(parameter): place for place, (parameter, _) in enumerate(in_order(model))}
    return sorted(found.values(), key=lambda row: order[id(row.parameter)])


def _weight(model: ModelSpec, step: StepSpec, name: str, module: Module, parameter: Parameter) -> Weight:
    embeds = isinstance(module, Embedding)
    is_weight = parameter is getattr(module, "weight", None)
    kind = "other"
    if embeds:
        kind = "embedding"
    elif is_weight and (module is model.head or name.startswith(f"{model.head_path}.")):
        kind = "head"
    elif is_weight and isinstance(module, Linear) and not isinstance(module, Conv1D):
        kind = "linear"
    dtype = FP32 if step.master_weights else parameter.dtype
    wide = step.trainer and not step.master_weights and embeds
    return Weight(parameter.shape, dtype, name, kind, wide)


def check_optimizer(model: ModelSpec, step: StepSpec) -> None:
    """Refuse, in one line, an optimizer that cannot train what a method lets train."""
    picked = chosen(step)
    if picked.row.whole_model and any(p.role == "weight" and p.edge is None for _, p, _ in model.parameters()):
        raise BadInput(f"--optimizer {picked.row.name}: {FOR_WHOLE_MODELS}")
    words = refusal(picked.row, [row.weight for row in trained_tensors(model, step)], picked.options)
    if words:
        raise BadInput(f"--optimizer {picked.row.name}: {words}")


def by_type(trained: list[Trained]) -> list[list[Trained]]:
    """The groups that foreach functions take one after another: of the types, the one met last comes first.

    Source: torch-foreach (ForeachUtils.h: a hash map, whose newest entry is read first).
    """
    groups: dict[str, list[Trained]] = {}
    for row in trained:
        groups.setdefault(row.dtype.short, []).append(row)
    return list(groups.values())[::-1]


def in_groups(trained: Iterable[Trained], optimizer: Chosen) -> list[list[Trained]]:
    """Groups of parameters, which follow one another: first those that decay."""
    groups: dict[int, list[Trained]] = {}
    for row in trained:
        groups.setdefault(optimizer.group(row.weight, row.decayed), []).append(row)
    return [groups[number] for number in sorted(groups)]


def own(group: Iterable[Trained], optimizer: Chosen, rule: Optimizer) -> list[Trained]:
    """Those of a group that one of the optimizer's rules updates."""
    return [row for row in group if optimizer.rule(row.weight) is rule]


def _decayed(name: str, module: object) -> bool:
    return not isinstance(module, LayerNorm) and not _NOT_DECAYED.search(name)


def loop_records(
    model: ModelSpec, optimizer: Chosen, trained: list[Trained], rule: Optimizer
) -> tuple[list[Record], list[int]]:
    """The tensors that a rule's program holds at its worst, and bytes of what it has let go by then."""
    if rule.step is None:
        return [], []
    rows = {id(row.parameter): row for row in trained}
    order = [rows[id(parameter)] for parameter, _ in in_order(model, rule.every) if id(parameter) in rows]
    t = Engine()
    t.lets_go = True
    groups = [[row.weight for row in own(group, optimizer, rule)] for group in in_groups(order, optimizer)]
    rule.step(t, [group for group in groups if group], optimizer.options, True)
    t.mark("end")
    worst = t.segments[0].peak_clock
    alive = [record for record in t.records if record.born <= worst < record.died]
    return alive, _left([size for clock, size in t.gone if clock < worst])


def _left(gone: list[int]) -> list[int]:
    """What was let go, without what came back."""
    left: list[int] = []
    for size in gone:
        left.append(size) if size > 0 else left.remove(-size)
    return left


def in_order(model: ModelSpec, each: bool = False) -> Iterator[tuple[Parameter, int]]:
    """Trained tensors as an optimizer meets them, and how often: embeddings, blocks, what follows them.

    Of blocks that are alike all but the last come together, and then the last, so that every pair of neighbours is
    seen; or `each` block by itself.
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
            together = (run.count - 1, 1) if run.count > 1 else (1,)
            for count in (1,) * run.count if each else together:
                for _, parameter in run.block.named_parameters():
                    if parameter.edge:
                        yield parameter, count
