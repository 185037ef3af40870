"""DeLoRA: LoRA whose ranks are normalised, and scaled by one trained number: the norm of what is added.

Mirrors peft 0.21 tuners/delora/layer.py.

The norms of A's rows and B's columns are taken on every pass; those of the weight's columns stay as a buffer.
Source: delora
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, adapter_bytes, buffer_dtype, refuse_conv1d, refuse_packed
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class DeloraOptions(Options):
    """The bound, and dropout under the name that peft has for it here."""

    delora_lambda: Annotated[int, Field(ge=0, le=10**6, description="bound at the start; no bytes")] = 15
    module_dropout: Annotated[float, Field(ge=0, lt=1, description="dropout before the adapter")] = 0.0


class DeloraLinear(Module):
    """base(x) + B ((A (x * column norms)) * lambda / rank / norms of A and B), summed into zeros first."""

    applied_often = True  # both factors are multiplied by, and measured

    def __init__(self, base: Linear, method: MethodSpec) -> None:
        super().__init__()
        self.dropout, self.rank = method.options.module_dropout, method.rank
        self.base_layer = base
        self.delora_A = adapter((method.rank, base.in_features), method.adapter_dtype)
        self.delora_B = adapter((base.out_features, method.rank), method.adapter_dtype)
        self.delora_lambda = adapter((1,), method.adapter_dtype)
        self.delora_w_norm = Parameter((base.in_features,), buffer_dtype(method, [base]), role="buffer")

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype, ranks = x.dtype, (self.rank,)
        base_out = t.call("base_layer", self.base_layer, x)
        add_out = t.like(base_out, "zeros_like", 0)
        dropped = t.dropout(x, self.dropout)
        scaled = t.mul(dropped, self.delora_w_norm)
        h = t.linear(scaled, self.delora_A)
        del scaled
        of_a = t.clamp(t.norm(self.delora_A, ranks), 1)
        of_b = t.clamp(t.norm(self.delora_B, ranks), 1)
        scaling = t.div(t.mul_scalar(self.delora_lambda, "div"), t.mul(of_a, of_b))
        h = t.mul(h, scaling)
        h = t.linear(h, self.delora_B)
        add_out = t.add_in_place(add_out, h)
        result = t.add(base_out, add_out)
        del of_a, of_b
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Add the delta in the weight's type: in place, or to a copy that a new sum replaces."""
        weight = self.base_layer.weight
        delta = t.to(self._delta_weight(t), weight.dtype)
        if not t.safe:
            t.add_in_place(weight, delta)
            return
        copy = t.add(t.clone(weight), delta)
        t.check(copy)
        t.place(weight, copy)

    def _delta_weight(self, t: Ops) -> Tensor:
        """B diag(scaling) A, then every column by the weight's norm."""
        a, b, rank = self.delora_A, self.delora_B, self.rank
        of_a, of_b = t.clamp(t.norm(a, (rank,)), 1), t.clamp(t.norm(b, (rank,)), 1)
        scaling = t.div(t.mul_scalar(self.delora_lambda, "div"), t.mul(of_a, of_b))
        diagonal = t.new((rank, rank), rank**2, scaling.dtype, "diag_embed")
        del scaling
        out = t.matmul(t.matmul(b, diagonal, b.shape), a, (b.shape[0], a.shape[1]))
        out = t.mul(out, self.delora_w_norm)
        del of_a, of_b, diagonal
        return out  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put normalised factors beside every target."""
    refuse_packed(method, "delora")
    refuse_conv1d(adapt(model, method, lambda base: DeloraLinear(base, method)), "delora")
    norms = sum(p.num_bytes() * count for name, p, count in model.parameters() if name.endswith("delora_w_norm"))
    model.adapter_checkpoint_bytes = adapter_bytes(model) + norms


METHODS = (
    Method(
        "delora",
        "LoRA of normalised ranks and one trained norm",
        "delora",
        apply,
        default_rank=8,
        peft={"peft_type": "DELORA"},
        options=DeloraOptions,
        takes=("rank", "targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
