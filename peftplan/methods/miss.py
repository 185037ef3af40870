"""MiSS (once Bone): sums over groups of the input, times one trained matrix.

Mirrors peft 0.21 tuners/miss/layer.py.

Source: miss
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.quantize import Linear4bit
from peftplan.methods.wrapping import adapt, adapter, refuse_conv1d
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor


class MissOptions(Options):
    """The narrow form of the method."""

    mini_r: Annotated[
        int | None,
        Field(ge=1, le=10**6, description="outputs that a narrower matrix has, repeated over all: `mini`"),
    ] = None

    def peft_fields(self) -> dict[str, Any]:
        """peft has the narrow form as an initialisation."""
        return super().peft_fields() | ({"init_weights": "mini"} if self.mini_r else {})


class MissLinear(Module):
    """base(x) + sum_over_groups(dropout(x)) @ block."""

    def __init__(self, base: Linear, method: MethodSpec, dtype: DType) -> None:
        super().__init__()
        self.dropout, self.rank = method.dropout, method.rank
        self.base_layer = base
        self.mini = method.options.mini_r
        self.miss_block = adapter((self.mini or base.out_features, method.rank), dtype)  # peft's is its transpose

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        base, dtype = self.base_layer, x.dtype
        result = t.call("base_layer", base, x)
        if isinstance(base, Linear4bit) and base.four_bit:
            result = t.clone(result)
        block: Tensor = self.miss_block
        if self.mini:
            block = t.repeated(block, (base.out_features, self.rank))
        width = base.in_features + -base.in_features % self.rank
        if width != base.in_features:
            x = t.pad_last(x, width)
        x = t.to(x, self.miss_block.dtype)
        sums = t.sum_groups(t.dropout(x, self.dropout), (*x.shape[:-1], self.rank))
        added = t.linear(sums, block)
        del sums
        result = t.add(result, added)
        del added
        return t.to(result, dtype)  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put a matrix over groups of the input on every target."""
    narrow = method.options.mini_r
    adapted = adapt(model, method, lambda base: MissLinear(base, method, method.adapter_dtype))
    refuse_conv1d(adapted, "miss")
    for linear in adapted:
        if method.rank > linear.in_features:
            raise BadInput(
                f"--rank {method.rank} with --method miss: a target has {linear.in_features} inputs, "
                f"and peft takes "
                f"no more groups than that; give --rank {linear.in_features} or less"
            )
        if narrow and linear.out_features % narrow:
            raise BadInput(
                f"--method-option mini_r={narrow} does not divide the {linear.out_features} outputs of a target; "
                "give a divisor of all targets' outputs"
            )


METHODS = (
    Method(
        "miss",
        "sums over groups of the input, times one trained matrix (once called Bone)",
        "miss",
        apply,
        default_rank=64,
        peft={"peft_type": "MISS"},
        options=MissOptions,
        takes=("rank", "dropout", "targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
