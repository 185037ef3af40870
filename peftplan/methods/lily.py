"""Lily: A shared by layers that follow one another, and a few B by all layers, mixed by a router.

Mirrors peft 0.21 tuners/lily.

Targets of one name share: each group of `stride_A` one A, all of them the `num_B` parts of B, which every pass adds
up with weights that are the means of a router's answers over all tokens. Source: lily
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Annotated

from pydantic import Field

from peftplan.methods.method import Method, Options
from peftplan.methods.targets import matched, plain_names
from peftplan.methods.wrapping import (
    Found,
    adapter,
    adapter_bytes,
    adapter_linear,
    finish,
    freeze,
    put_on,
    refuse_conv1d,
)
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor

_FULL_NAMES_BELOW = 20  # targets


# Options keep the letters of peft's names.
class LilyOptions(Options):
    """Who shares what."""

    stride_A: Annotated[int, Field(ge=1, le=10**4, description="layers that share one A")] = 1  # noqa: N815
    num_B: Annotated[int, Field(ge=2, le=10**4, description="parts of B, which all share")] = 2  # noqa: N815
    scaling: Annotated[float, Field(description="what is added is multiplied by it; no bytes")] = 1.0


class Pool(Module):
    """The factors that layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Tensor] = {}  # while the model is entered

    def give(self, t: Ops) -> None:
        """Hand all factors out to the layers of one pass."""
        self.given = {name: t.shared_weight(weight) for name, weight in self.parameters.items()}


class LilyLinear(Module):
    """base(x) + B mixed for x, times A x."""

    pool: Pool

    def __init__(self, base: Linear, pool: Pool, method: MethodSpec) -> None:
        super().__init__()
        self.rank, self.num_parts, self.dtype = method.rank, method.options.num_B, method.adapter_dtype
        self.base_layer = base
        object.__setattr__(self, "pool", pool)  # no child: the model's stem owns it
        self.lily_router = adapter_linear(method.rank, method.options.num_B, method.adapter_dtype)
        self.factors: dict[int, tuple[str, str]] = {}  # by layer: which A and B of the pool

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        base, rank = self.base_layer, self.rank
        a, b = (self.pool.given[name] for name in self.factors[t.layer])
        result = t.call("base_layer", base, x)
        parts = t.seen(b, (self.num_parts, rank, base.out_features))
        x = t.to(x, self.dtype)
        hidden = t.linear(x, a)
        answers = t.call("lily_router", self.lily_router, hidden)
        chances = t.softmax(answers)
        weights = t.mean_rows(t.view(chances, (chances.numel // self.num_parts, self.num_parts)))
        row = t.view(weights, (1, 1, self.num_parts))
        flat = t.view(parts, (1, self.num_parts, rank * base.out_features))
        mixed = t.einsum(row, flat, (1, 1, rank * base.out_features))
        added = t.linear(hidden, t.view(mixed, (base.out_features, rank)))
        return t.add(result, t.to(t.mul_scalar(added), result.dtype))  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base, put routers on the targets and the factors beside the model."""
    freeze(model, method)
    found = matched(model, method.targets)
    names = _names(model, method, found)
    pool, groups = Pool(), dict[Hashable, list[tuple[LilyLinear, int]]]()
    refuse_conv1d(put_on(model, method, found, lambda base: LilyLinear(base, pool, method)), "lily")
    for layer, module in _in_order(model):
        base = module.base_layer
        name = names[id(base)]
        groups.setdefault((name or (layer, id(base)), base.weight.shape), []).append((module, layer))
    for number, members in enumerate(groups.values()):
        _share(pool, f"group_{number}", members, method.options.stride_A, method.adapter_dtype)
    model.stem.add("lily", pool)
    finish(model, method)
    enter = model.enter

    def entered(t: Ops, ids: Tensor) -> tuple[Tensor, object]:
        pool.give(t)
        return enter(t, ids)

    model.enter = entered
    model.plays_each = True  # a factor's gradient comes with one block and stays
    # a saved adapter has every layer's factors, shared or not
    uses = [pool.parameters[name] for _, module in _in_order(model) for name in module.factors[_]]
    shared = sum(factor.num_bytes() for factor in pool.parameters.values())
    model.adapter_checkpoint_bytes = adapter_bytes(model) - shared + sum(factor.num_bytes() for factor in uses)


def _names(model: ModelSpec, method: MethodSpec, found: Found) -> dict[int, str]:
    """The name under which each target was asked for, by which peft tells who shares; empty for one by itself.

    A regular expression is one name for all that it matches. All linears have theirs in full, and share nothing, up
    to a number; from there on the shortest ends that no other module has. Source: peft-targets.
    """
    asked = method.targets
    listed = plain_names(model, asked) if isinstance(asked, str) else asked
    if listed is None:
        return {id(module): "*" for _, _, module in found}
    if not (isinstance(asked, str) and asked.strip().lower() == "all-linear"):
        return {id(m): next(n for n in listed if f".{name}".endswith(f".{n}")) for _, name, m in found}
    ours = {id(module) for _, _, module in found}
    owners = {id(owner): count for owner, count, _ in model.groups()}
    if sum(owners[id(owner)] for owner, _, _ in found) < _FULL_NAMES_BELOW:
        return dict.fromkeys(ours, "")
    others = {
        end
        for owner, _, prefix in model.groups()
        for path, module in owner.walk(prefix)
        if id(module) not in ours
        for end in _ends(path)
    }
    return {id(m): next((end for end in _ends(name) if end not in others), name) for _, name, m in found}


def _ends(path: str) -> Iterator[str]:
    """The ends of a dotted path, the shortest first."""
    parts = path.split(".")
    return (".".join(parts[-length:]) for length in range(1, len(parts) + 1))


def _share(pool: Pool, name: str, members: list[tuple[LilyLinear, int]], stride: int, dtype: DType) -> None:
    """Make the factors of targets alike, and tell each layer which are its own."""
    first = members[0][0]
    base, rank = first.base_layer, first.rank
    whole = f"{name}_B"
    setattr(pool, whole, adapter((first.num_parts * rank, base.out_features), dtype))
    for place, (module, layer) in enumerate(members):
        part = f"{name}_A_{place // stride}"
        if part not in pool.parameters:
            setattr(pool, part, adapter((rank, base.in_features), dtype))
        module.factors[layer] = (part, whole)


def _in_order(model: ModelSpec) -> Iterator[tuple[int, LilyLinear]]:
    """Every target with its layer, as they stand in the model; those outside of blocks last."""
    layer = 0
    for run in model.runs:
        for _ in range(run.count):
            yield from ((layer, module) for _, module in run.block.walk() if isinstance(module, LilyLinear))
            layer += 1
    yield from ((-1, module) for _, module in model.stem.walk() if isinstance(module, LilyLinear))


METHODS = (
    Method(
        "lily",
        "A shared by neighbouring layers, a few B by all, mixed by a router",
        "lily",
        apply,
        default_rank=32,
        peft={"peft_type": "LILY"},
        options=LilyOptions,
        takes=("rank", "targets", "modules_to_save", "adapter_dtype"),
        merging="not possible: what is added depends on the input",
        merges=False,
        inference="two products and a router beside every target",
    ),
)
