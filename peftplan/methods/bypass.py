"""Adapters beside their linears at inference: where each row of a batch may have another one.

A low-rank product is added to what its linear gives, so that rows of different adapters can share the linear and
gather their own pair of matrices; servers do so for experts too. Whatever changes the weight itself, or scales the
linear's own result, cannot. peft mixes adapters of linears alone, not those of experts kept as one tensor.
Source: punica, s-lora, vllm-lora; peft 0.21 tuners/lora/layer.py (_mixed_batch_forward).
"""

from __future__ import annotations

from typing import NamedTuple

from peftplan.methods.lora import LoraLinear, LoraLinear4bit
from peftplan.methods.lora_parameter import LoraParameter
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module

_PLAIN_FORWARDS = (LoraLinear.forward, LoraLinear4bit.forward)


class Pair(NamedTuple):
    """Both matrices beside a linear, or beside each of a layer's `experts`; `count` such layers."""

    inputs: int
    rank: int
    outputs: int
    count: int  # type: ignore[assignment]  # a field, not the method of a tuple
    experts: int = 1
    of_linear: bool = True


def gathered_pairs(model: ModelSpec) -> tuple[Pair, ...] | None:
    """The adapter as pairs of matrices; None where it is anything else in part or whole."""
    pairs, covered = [], set()
    for owner, count, prefix in model.groups():
        for _, module in owner.walk(prefix):
            if not isinstance(module, (LoraLinear, LoraParameter)):
                continue
            pair = _pair(module, count)
            if pair is None:
                return None
            pairs.append(pair)
            covered |= {id(module.lora_A.weight), id(module.lora_B.weight)}
    added = {id(p) for _, p, _ in model.parameters() if p.role == "adapter"}
    return tuple(pairs) if pairs and added <= covered else None


def _pair(module: LoraLinear | LoraParameter, count: int) -> Pair | None:
    if isinstance(module, LoraParameter):
        experts = module.num_experts
        return Pair(module.in_features, module.rank, module.out_features, count, experts, False)
    plain = type(module).forward in _PLAIN_FORWARDS and type(module).delta is LoraLinear.delta
    a, b = _matrices(module)
    if not plain or a is None or b is None:
        return None
    return Pair(a.in_features, a.out_features, b.out_features, count)


def _matrices(module: Module) -> tuple[Linear | None, Linear | None]:
    """Both linears; a layer of another kind may have something else in their place."""
    found = (module.children.get("lora_A"), module.children.get("lora_B"))
    a, b = (linear if isinstance(linear, Linear) else None for linear in found)
    return a, b
