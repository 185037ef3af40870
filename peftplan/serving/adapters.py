"""What one adapter takes, on disk and where it is served, and what tenants share."""

from __future__ import annotations

from dataclasses import dataclass, replace

from peftplan.errors import BadInput
from peftplan.methods.bypass import Pair, gathered_pairs
from peftplan.methods.wrapping import adapter_bytes, freeze
from peftplan.resolve import Plan
from peftplan.serving.inference import Packed, pack, stored_frac
from peftplan.serving.options import Serving
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec


@dataclass(slots=True)
class Served:
    """The base without and with an adapter, and the sizes of the adapter.

    `bytes` are those of its weights; `hot_bytes` of the place that it has on the GPU; `scale`: how many times as
    large a stated size is as the computed one. `pairs`: see `methods.bypass`; their ranks are those of the place.
    Passes are played with `base` and `adapted`; `stored` is the base as it lies in memory, which is another where
    it is multiplied as it is packed: then `linears_frac` and `experts_frac` are the bytes of packed weights over
    those of dense ones.
    """

    base: ModelSpec
    stored: ModelSpec
    adapted: ModelSpec
    num_params: int
    num_adapter_params: int
    bytes: int
    disk_bytes: int
    hot_bytes: int
    scale: float
    pairs: tuple[Pair, ...] | None
    linears_frac: float
    experts_frac: float


def served(plan: Plan, serving: Serving, packed: Packed | None = None) -> Served:
    """Build both models and size the adapter; methods that leave nothing to share are refused."""
    if not plan.method.frozen_base:
        raise BadInput(
            f"--method {plan.method.name} trains the base itself, of which every tenant then needs a copy; "
            "take a method with adapters, such as lora"
        )
    base = plan.model
    num_params = base.num_params()
    freeze(base, plan.method_spec)
    stored = base
    if packed is not None:
        stored = plan.model
        pack(stored, plan.method_spec, packed)
    adapted = _with_adapter(plan, plan.method_spec)
    _check_shared(plan, adapted)
    computed = _kept_bytes(adapted)
    trained = sum(p.numel * count for _, p, count in adapted.parameters() if p.role == "adapter" and p.edge)
    size = serving.adapter_size
    scale = 1.0 if size is None else size / computed
    placed = adapted
    if serving.slot_rank is not None:
        if serving.slot_rank < plan.method_spec.rank:
            raise BadInput(
                f"--slot-rank {serving.slot_rank} has no place for --rank {plan.method_spec.rank}; "
                "give at least that, or leave it out"
            )
        placed = _with_adapter(plan, replace(plan.method_spec, rank=serving.slot_rank))
    return Served(
        base=base,
        stored=stored,
        adapted=adapted,
        num_params=num_params,
        num_adapter_params=trained,
        bytes=computed if size is None else size,
        disk_bytes=_saved_bytes(adapted) if size is None else size,
        hot_bytes=round(_kept_bytes(placed) * scale),
        scale=scale,
        pairs=gathered_pairs(placed),
        linears_frac=stored_frac(stored, base, 2) if packed is not None else 1.0,
        experts_frac=stored_frac(stored, base, 3) if packed is not None else 1.0,
    )


def _with_adapter(plan: Plan, spec: MethodSpec) -> ModelSpec:
    model = plan.model
    plan.method.apply(model, spec)
    return model


def _check_shared(plan: Plan, model: ModelSpec) -> None:
    """A base whose own weights train cannot be shared, and a method that adds nothing has nothing to hold."""
    own = any(p.role == "weight" and p.edge is not None for _, p, _ in model.parameters())
    if own or not any(p.role == "adapter" for _, p, _ in model.parameters()):
        raise BadInput(
            f"--method {plan.method.name} changes weights of the base, which tenants share; "
            "take a method that adds an adapter, such as lora"
        )


def _saved_bytes(model: ModelSpec) -> int:
    """A saved adapter, in the format it is served in unless the method states what peft saves."""
    if model.adapter_checkpoint_bytes is not None:
        return model.adapter_checkpoint_bytes
    trained = [(p, n) for _, p, n in model.parameters() if p.role == "adapter" and p.edge is not None]
    return sum(p.num_bytes() * count for p, count in trained)


def _kept_bytes(model: ModelSpec) -> int:
    """What is held to serve it: all that was added, or less where only what it computes is saved (P-tuning)."""
    stated = model.adapter_checkpoint_bytes
    added = adapter_bytes(model)
    return added if stated is None else min(added, stated)


def base_disk_bytes(model: ModelSpec) -> int:
    """The base's checkpoint: 16 bits a weight, or as it is packed where that is how it is published."""
    total = 0
    for _, parameter, count in model.parameters():
        if parameter.role == "weight":
            packed = parameter.quant
            size = 2 * parameter.numel if packed is None else packed.checkpoint_bytes(parameter.shape)
            total += size * count
    return total
