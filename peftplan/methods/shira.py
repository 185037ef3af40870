"""SHiRA: few numbers of every target's weight train, at random places. Mirrors peft 0.21 tuners/shira/layer.py.

On every pass the weight is copied (unpacked, where it is packed) and the numbers are added to the copy, by way of
two more copies in their own type where that is another one; the product keeps the copy for backward, where the
gradient of the whole weight is made, to pick from. Source: shira
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, adapter_bytes, refuse_conv1d
from peftplan.specs.formats import INT32, INT64
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class ShiraOptions(Options):
    """Where the numbers are."""

    random_seed: Annotated[int | None, Field(ge=0, description="seed of where they lie; no bytes")] = None


class ShiraLinear(Module):
    """(weight + numbers at their places) x + bias."""

    def __init__(self, base: Linear, method: MethodSpec) -> None:
        super().__init__()
        self.base_layer = base
        count = method.rank * (base.in_features + base.out_features)
        self.shira_weight = adapter((count,), method.adapter_dtype)
        self.shira_indices = Parameter((2, count), INT32, role="buffer")

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        weight = t.clone(t.dense_weight(self.base_layer))
        if t.autocast is None and weight.dtype is not x.dtype:
            raise BadInput(
                f"--method shira multiplies an unpacked weight in {weight.dtype.short} by an input in "
                f"{x.dtype.short}, which torch refuses; take --precision bf16-mixed"
            )
        values = t.mul_scalar(self.shira_weight)
        weight = t.add_sparse_(weight, values, t.to(self.shira_indices, INT64))
        del values
        return t.linear(x, weight, self.base_layer.bias)  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put numbers on the weight of every target."""
    adapted = adapt(model, method, lambda base: ShiraLinear(base, method))
    refuse_conv1d(adapted, "shira")
    for linear in adapted:
        count, size = method.rank * (linear.in_features + linear.out_features), linear.weight.numel
        if count > size:
            raise BadInput(
                f"--rank {method.rank} with --method shira trains {count} numbers of a target's {size}; "
                f"give --rank {size // (linear.in_features + linear.out_features)} or less"
            )
    indices = sum(
        parameter.num_bytes() * count
        for owner, count, _ in model.groups()
        for name, parameter in owner.named_parameters()
        if name.endswith("shira_indices")
    )
    model.adapter_checkpoint_bytes = adapter_bytes(model) + indices


METHODS = (
    Method(
        "shira",
        "few numbers of every target's weight, at random places",
        "shira",
        apply,
        default_rank=32,
        peft={"peft_type": "SHIRA"},
        options=ShiraOptions,
        takes=("rank", "targets", "modules_to_save", "adapter_dtype"),
    ),
)
