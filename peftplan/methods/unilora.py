"""UniLoRA: LoRA whose factors are drawn from one short trained vector. Mirrors peft 0.21 tuners/unilora.

Every number of every factor is an entry of the vector, found by an index of its own and scaled so that the map
keeps lengths: indices (8 bytes each) and scales stand beside the weights, and both factors are gathered on every
pass. Assumes: what CUDA sorts indices with in backward, some tens of bytes for each, is not counted.
Source: unilora
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.merging import add_to_weight
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, adapter_bytes, buffer_dtype
from peftplan.specs.formats import INT64, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class UniloraOptions(Options):
    """The vector, and what is saved."""

    theta_d_length: Annotated[int, Field(ge=1, le=10**9, description="length of the trained vector")] = 256
    proj_seed: Annotated[int | None, Field(ge=0, description="seed of the indices; no bytes")] = None
    save_indices: Annotated[bool, Field(description="indices and scales are saved with the adapter")] = False


class Theta(Module):
    """The vector that all targets share."""

    def __init__(self, length: int, dtype: DType) -> None:
        super().__init__()
        self.unilora_theta_d = adapter((length,), dtype)
        self.given: list[Tensor] = []  # while the model is entered


class UniloraLinear(Module):
    """base(x) + B A x, with A and B gathered from the vector and scaled."""

    theta: Theta

    def __init__(self, base: Linear, theta: Theta, method: MethodSpec) -> None:
        super().__init__()
        self.dropout = method.dropout
        self.base_layer = base
        object.__setattr__(self, "theta", theta)  # no child: the model's stem owns it
        first, second = (method.rank, base.in_features), (base.out_features, method.rank)
        scales = buffer_dtype(method, [base])
        self.unilora_indices_A = Parameter(first, INT64, role="buffer")
        self.unilora_indices_B = Parameter(second, INT64, role="buffer")
        self.unilora_scales_A = Parameter(first, scales, role="buffer")
        self.unilora_scales_B = Parameter(second, scales, role="buffer")

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype = x.dtype
        result = t.call("base_layer", self.base_layer, x)
        theta = self.theta.given[-1]
        a = t.mul(t.rows(theta, self.unilora_indices_A), self.unilora_scales_A)
        b = t.mul(t.rows(theta, self.unilora_indices_B), self.unilora_scales_B)
        x = t.to(x, theta.dtype)
        dropped = t.dropout(x, self.dropout)
        inner = t.linear(dropped, a)
        del dropped
        outer = t.linear(inner, b)
        del inner
        result = t.add(result, outer)
        del outer
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Add the product of both factors."""
        add_to_weight(t, self.base_layer.weight, self._delta_weight)

    def _delta_weight(self, t: Ops) -> Tensor:
        theta = self.theta.unilora_theta_d
        narrow, numbers = t.narrow_on_host(theta), t.widened(theta)
        scales_a = t.widened(self.unilora_scales_A) if narrow else self.unilora_scales_A
        scales_b = t.widened(self.unilora_scales_B) if narrow else self.unilora_scales_B
        a = t.mul(t.rows(numbers, self.unilora_indices_A), scales_a)
        b = t.mul(t.rows(numbers, self.unilora_indices_B), scales_b)
        del numbers, scales_a, scales_b
        out = t.matmul(b, a, self.base_layer.weight.shape)
        return t.to(out, theta.dtype)  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base, put the vector beside the model, and indices and scales beside the targets."""
    if method.quant is not None:
        raise BadInput(
            f"--method unilora with --quant {method.quant.kind}: peft 0.21 casts its scales to the type of the "
            "packed weights, which makes them zero; leave --quant out, or take --method qlora"
        )
    theta = Theta(method.options.theta_d_length, method.adapter_dtype)
    adapt(model, method, lambda base: UniloraLinear(base, theta, method))
    model.stem.add("unilora", theta)
    enter = model.enter

    def entered(t: Ops, ids: Tensor) -> tuple[Tensor, object]:
        theta.given[:] = [t.shared_weight(theta.unilora_theta_d)]
        return enter(t, ids)

    model.enter = entered
    model.plays_each = True  # the vector's gradient comes with one block and stays
    if method.options.save_indices:
        saved = sum(count * p.num_bytes() for name, p, count in model.parameters() if "unilora_" in name)
        model.adapter_checkpoint_bytes = adapter_bytes(model) + saved - theta.unilora_theta_d.num_bytes()


METHODS = (
    Method(
        "unilora",
        "LoRA whose factors are drawn from one short trained vector",
        "unilora",
        apply,
        default_rank=4,
        peft={"peft_type": "UNILORA"},
        options=UniloraOptions,
        takes=("rank", "dropout", "targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
