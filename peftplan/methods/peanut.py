"""PEANuT: what is added to a weight is a small network's answer to the weight itself.

Mirrors peft 0.21 tuners/peanut/layer.py.

On every pass the weight goes through the network row by row of its transpose: the delta weight is as large as the
weight, and the product keeps it. Source: peanut
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, adapter_linear, refuse_conv1d, refuse_packed
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor

Activation = Literal["relu", "gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "silu", "tanh"]


class PeanutOptions(Options):
    """The network."""

    depth: Annotated[int, Field(ge=0, le=100, description="pairs of hidden layers, of which one encodes")] = 0
    act_fn: Annotated[Activation, Field(description="the function behind each layer but the last")] = "relu"
    scaling: Annotated[float, Field(description="what the answer is multiplied by; no bytes")] = 1.0


class PeanutLinear(Module):
    """base(x) + network(weight) x."""

    def __init__(self, base: Linear, rank: int, options: PeanutOptions, dtype: DType) -> None:
        super().__init__()
        self.depth, self.function = options.depth, options.act_fn
        self.base_layer = base
        self.peanut_A = adapter((rank, base.out_features), dtype)
        for name in ("encoder", "decoder"):
            for i in range(self.depth):
                self.add(f"peanut_{name}s_{i}", adapter_linear(rank, rank, dtype))
        self.peanut_B = adapter_linear(rank, base.out_features, dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        result = t.call("base_layer", self.base_layer, x)
        delta = self._delta(t)
        x = t.to(x, delta.dtype)
        added = t.linear(x, delta)
        return t.add(result, t.to(added, result.dtype))  # type: ignore[no-any-return]

    def _delta(self, t: Ops) -> Tensor:
        weight = self.base_layer.weight
        outputs, inputs = weight.shape
        rows = t.to(t.view(weight, (inputs, outputs)), self.peanut_A.dtype)
        delta = t.activation(t.linear(rows, t.view(self.peanut_A, self.peanut_A.shape)), self.function)
        residuals = []
        for i in range(self.depth):
            residuals.append(delta)
            delta = t.activation(t.call("encoder", self.children[f"peanut_encoders_{i}"], delta), self.function)
        for i in range(self.depth):
            delta = t.activation(t.call("decoder", self.children[f"peanut_decoders_{i}"], delta), self.function)
            delta = t.add(delta, residuals[self.depth - 1 - i])
        delta = t.call("peanut_B", self.peanut_B, delta)
        return t.view(t.mul_scalar(delta), weight.shape)  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put a network beside every target."""
    refuse_packed(method, "peanut")
    adapted = adapt(
        model, method, lambda base: PeanutLinear(base, method.rank, method.options, method.adapter_dtype)
    )
    refuse_conv1d(adapted, "peanut")


METHODS = (
    Method(
        "peanut",
        "what is added to a weight is a small trained network's answer to it",
        "peanut",
        apply,
        default_rank=32,
        peft={"peft_type": "PEANUT"},
        options=PeanutOptions,
        takes=("rank", "targets", "modules_to_save", "adapter_dtype"),
    ),
)
