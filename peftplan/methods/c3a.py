"""C3A: what is added to a linear is a circular convolution, block by block. Mirrors peft 0.21 tuners/c3a.

The product is computed in spectra of fp32 whatever the base is in: the input in fp32 is kept for backward, and
each pass holds spectra of input and output, twice their size. Source: c3a
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, refuse_conv1d, refuse_packed
from peftplan.specs.formats import FP32, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor


class C3aOptions(Options):
    """The blocks."""

    block_size: Annotated[
        int,
        Field(ge=1, le=10**6, description="size of a block, a divisor of inputs and outputs of all targets"),
    ] = 256


class C3aLinear(Module):
    """base(x) + convolution(x) / outputs, added in place."""

    def __init__(self, base: Linear, block: int, dtype: DType) -> None:
        super().__init__()
        self.base_layer = base
        self.c3a_kernel = adapter((base.out_features // block, base.in_features // block, block), dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype = x.dtype
        result = t.call("base_layer", self.base_layer, x)
        x = t.to(x, FP32)
        kernel = t.to(self.c3a_kernel, FP32)
        x = t.mul_scalar(t.circular_convolution(x, kernel), "div")
        result = t.add_in_place(result, t.to(x, result.dtype))
        return t.to(result, dtype)  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put a convolution beside every target."""
    refuse_packed(method, "c3a", ("int8",))  # adding in place to its results fails
    block = method.options.block_size
    adapted = adapt(model, method, lambda base: C3aLinear(base, block, method.adapter_dtype))
    refuse_conv1d(adapted, "c3a")
    for linear in adapted:
        if linear.in_features % block or linear.out_features % block:
            raise BadInput(
                f"--method-option block_size={block} does not divide a target's {linear.in_features} inputs and "
                f"{linear.out_features} outputs; give a divisor of those of all targets"
            )


METHODS = (
    Method(
        "c3a",
        "a circular convolution added, block by block",
        "c3a",
        apply,
        peft={"peft_type": "C3A"},
        options=C3aOptions,
        takes=("targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
