"""Super-Tuning: few numbers of every target's weight train, those that are largest; with `r`, LoRA beside them.

Mirrors peft 0.21 tuners/supertuning/layer.py.

On every pass the numbers are added to a copy of the weight, which the product keeps for backward, where the
gradient of the whole weight is made, to pick from. Source: supertuning
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, adapter_bytes, adapter_linear, refuse_conv1d, refuse_packed
from peftplan.specs.formats import INT32, INT64
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class SupertuningOptions(Options):
    """How many numbers train, and what trains beside them."""

    sparsity: Annotated[float, Field(ge=0, lt=1, description="fraction of a weight's numbers that stay")] = 0.99
    r: Annotated[int | None, Field(ge=1, le=10**6, description="rank of LoRA beside them: Supra")] = None
    select_top: Annotated[bool, Field(description="the largest numbers train, not the smallest; no bytes")] = True
    save_precomputed_indices: Annotated[bool, Field(description="where they lie is saved with the adapter")] = True


class SuperLinear(Module):
    """(weight + numbers at their places) x + bias, and perhaps B A x."""

    def __init__(self, base: Linear, method: MethodSpec) -> None:
        super().__init__()
        self.dropout, options, dtype = method.dropout, method.options, method.adapter_dtype
        self.base_layer = base
        count = int(base.weight.numel * (1 - options.sparsity))
        self.supertuning_values = adapter((count,), dtype)
        self.supertuning_indices = Parameter((count,), INT32, role="buffer")
        self.supertuning_lora_A = self.supertuning_lora_B = None
        if options.r is not None:
            self.supertuning_lora_A = adapter_linear(base.in_features, options.r, dtype)
            self.supertuning_lora_B = adapter_linear(options.r, base.out_features, dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        weight, bias = self.base_layer.weight, self.base_layer.bias
        indices = t.to(self.supertuning_indices, INT64)
        values = t.to(self.supertuning_values, weight.dtype)
        composed = t.scatter_added(weight, indices, values)
        result = t.linear(x, composed, bias)
        a, b = self.supertuning_lora_A, self.supertuning_lora_B
        if a is not None:
            dropped = t.to(t.dropout(x, self.dropout), a.weight.dtype)
            inner = t.call("supertuning_lora_A", a, dropped)
            added = t.call("supertuning_lora_B", b, inner)
            del inner
            result = t.add(result, t.to(t.mul_scalar(added), result.dtype))
        return result  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put numbers on the weight of every target."""
    refuse_packed(method, "supertuning")
    adapted = adapt(model, method, lambda base: SuperLinear(base, method))
    refuse_conv1d(adapted, "supertuning")
    sparsity = method.options.sparsity
    for linear in adapted:
        if int(linear.weight.numel * (1 - sparsity)) < 1:
            raise BadInput(
                f"--method-option sparsity={sparsity} leaves none of a target's {linear.weight.numel} numbers to "
                "train; give a lower one"
            )
    if method.options.save_precomputed_indices:
        places = sum(p.num_bytes() * count for name, p, count in model.parameters() if name.endswith("g_indices"))
        model.adapter_checkpoint_bytes = adapter_bytes(model) + places


METHODS = (
    Method(
        "supertuning",
        "few numbers of every target's weight, its largest; perhaps with LoRA beside them",
        "supertuning",
        apply,
        peft={"peft_type": "SUPERTUNING"},
        options=SupertuningOptions,
        takes=("dropout", "targets", "modules_to_save", "adapter_dtype"),
    ),
)
