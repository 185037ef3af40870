"""LoHa: the elementwise product of two low-rank products, added to the weight.

Mirrors peft 0.21 tuners/loha/layer.py.

The whole delta weight is made on every pass and kept for the gradient of the input; both products behind it
are made again in backward, outside autocast. Source: loha
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from peftplan.methods.merging import add_to_weight, refuse_packed_merge
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, refuse_conv1d, refuse_packed
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor, bytes_of


class LohaOptions(Options):
    """How the first values are drawn."""

    init_weights: Annotated[bool, Field(description="start as the base does; else at random: no bytes")] = True


class LohaLinear(Module):
    """base(x) + ((w1_a @ w1_b) * (w2_a @ w2_b)) x."""

    def __init__(self, base: Linear, rank: int, dtype: DType) -> None:
        super().__init__()
        self.base_layer = base
        outputs, inputs = base.out_features, base.in_features
        self.hada_w1_a = adapter((outputs, rank), dtype)
        self.hada_w1_b = adapter((rank, inputs), dtype)
        self.hada_w2_a = adapter((outputs, rank), dtype)
        self.hada_w2_b = adapter((rank, inputs), dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype = x.dtype
        result = t.call("base_layer", self.base_layer, x)
        result = t.add(result, self.delta(t, x))
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def delta(self, t: Ops, x: Tensor) -> Tensor:
        """What is added to the base's result."""
        factors = (self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b)
        weight = t.function("HadaWeight", self._weight, _backward, factors)
        x = t.to(x, weight.dtype)
        return t.linear(x, weight)  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Add it to a dense weight."""
        weight = self.base_layer.weight
        refuse_packed_merge(weight, "peft 0.21 adds loha's delta to the packed numbers, which fails")
        add_to_weight(t, weight, self._weight)

    def _weight(self, t: Ops) -> Tensor:
        shape = self.base_layer.weight.shape
        first = t.matmul(self.hada_w1_a, self.hada_w1_b, shape)
        second = t.matmul(self.hada_w2_a, self.hada_w2_b, shape)
        product = t.mul(first, second)
        del first, second
        return t.mul_scalar(product)  # type: ignore[no-any-return]


def _backward(t: Any, g: Tensor, saved: Sequence[Any], context: Any) -> list[Tensor]:
    first_a, first_b, second_a, second_b = saved
    scaled = t.like(g, "mul")
    part = _product(t, scaled, second_a, second_b)
    grads = _of_factors(t, part, first_a, first_b)
    whole = t.matmul(first_a, first_b, g.shape)  # before the part of the other goes
    part = t.new(g.shape, g.numel, whole.dtype, "mul", bytes_of(scaled, whole))
    del whole
    return [*grads, *_of_factors(t, part, second_a, second_b)]


def _product(t: Any, scaled: Tensor, a: Tensor, b: Tensor) -> Tensor:
    whole = t.matmul(a, b, scaled.shape)
    return t.new(scaled.shape, scaled.numel, whole.dtype, "mul", bytes_of(scaled, whole))  # type: ignore[no-any-return]


def _of_factors(t: Any, part: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    num_flop = 2 * part.numel * a.shape[1]
    return [
        t.new(a.shape, a.numel, part.dtype, "mm", bytes_of(part, b), num_flop),
        t.new(b.shape, b.numel, part.dtype, "mm", bytes_of(part, a), num_flop),
    ]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put a product of products on every target."""
    refuse_packed(method, "loha", ("nf4", "fp4"))
    refuse_conv1d(adapt(model, method, lambda base: LohaLinear(base, method.rank, method.adapter_dtype)), "loha")


METHODS = (
    Method(
        "loha",
        "the elementwise product of two low-rank products, added to the weight",
        "loha",
        apply,
        default_rank=8,
        peft={"peft_type": "LOHA"},
        options=LohaOptions,
        takes=("rank", "alpha", "targets", "modules_to_save", "adapter_dtype"),
    ),
)
