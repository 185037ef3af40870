"""GraLoRA: the weight in k x k blocks, each with factors of its own, and ranks that blocks exchange.

Mirrors peft 0.21 tuners/gralora/layer.py.

A and B hold one factor for each block of columns and of rows; what the first makes of the input is split by rank
and handed on crosswise. As many parameters as LoRA of the same rank, k times the rank.
Source: gralora
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, adapter_linear
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Conv1D, Linear, Module, Ops
from peftplan.specs.tensors import Tensor


class GraloraOptions(Options):
    """The blocks, and a plain LoRA beside them."""

    gralora_k: Annotated[
        int, Field(ge=1, le=10**4, description="blocks along each side; divides --rank, inputs and outputs")
    ] = 2
    hybrid_r: Annotated[int, Field(ge=0, le=10**6, description="rank of a plain LoRA beside the blocks")] = 0


class GraloraLinear(Module):
    """base(x) + scaling * blocks(x), added in place; and scaling * B A x of the plain LoRA, where there is one."""

    def __init__(self, base: Linear, method: MethodSpec) -> None:
        super().__init__()
        options, dtype = method.options, method.adapter_dtype
        self.dropout, self.rank, self.parts = method.dropout, method.rank, options.gralora_k
        self.inputs, self.outputs = base.in_features, base.out_features
        self.base_layer = base
        self.gralora_A = adapter((self.parts, self.inputs // self.parts, self.rank), dtype)
        self.gralora_B = adapter((self.parts, self.rank, self.outputs // self.parts), dtype)
        self.hybrid = options.hybrid_r > 0
        if self.hybrid:
            self.gralora_A_general = adapter_linear(self.inputs, options.hybrid_r, dtype)
            self.gralora_B_general = adapter_linear(options.hybrid_r, self.outputs, dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        result = t.call("base_layer", self.base_layer, x)
        add = t.add_to_view if isinstance(self.base_layer, Conv1D) else t.add_in_place
        output = self._blocks(t, x)
        scaled = t.mul_scalar(t.to(output, result.dtype))
        result = add(result, scaled)
        del scaled
        if self.hybrid:
            dropped = t.dropout(t.to(x, self.gralora_A.dtype), self.dropout)
            inner = t.call("gralora_A_general", self.gralora_A_general, dropped)
            del dropped
            beside = t.call("gralora_B_general", self.gralora_B_general, inner)
            del inner
            scaled = t.mul_scalar(t.to(beside, result.dtype))
            result = add(result, scaled)
            del scaled
        return t.to(result, x.dtype)  # type: ignore[no-any-return]

    def _blocks(self, t: Ops, x: Tensor) -> Tensor:
        """The input through both sets of factors, batched over blocks."""
        k, tokens, rank = self.parts, x.numel // self.inputs, self.rank
        apart = k > 1  # one block lies as the whole does
        split = t.regrouped if apart else t.view
        inner = t.einsum(
            split(t.dropout(t.to(x, self.gralora_A.dtype), self.dropout), (k, tokens, self.inputs // k)),
            self.gralora_A,
            (k, tokens, rank),
        )
        if apart and rank > k:
            inner = t.relaid(inner)
        outer = t.einsum(inner, self.gralora_B, (k, tokens, self.outputs // k))
        del inner
        shape = (*x.shape[:-1], self.outputs)
        return t.view(t.contiguous(outer) if apart else outer, shape)  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put blocks of factors beside every target."""
    k = method.options.gralora_k
    if method.quant is not None and method.quant.kind == "int8":
        raise BadInput(
            "--method gralora with --quant int8: peft 0.21 adds in place to what bitsandbytes returns, which torch "
            "forbids there; take --quant nf4, or leave --quant out"
        )
    if method.rank % k:
        raise BadInput(
            f"--rank {method.rank} with --method gralora is shared out among gralora_k={k} blocks; "
            f"give --rank {method.rank + -method.rank % k}, or another --method-option gralora_k"
        )
    for linear in adapt(model, method, lambda base: GraloraLinear(base, method)):
        if linear.in_features % k or linear.out_features % k:
            raise BadInput(
                f"--method-option gralora_k={k} does not divide a target of {linear.in_features} inputs and "
                f"{linear.out_features} outputs; give a divisor of both"
            )


METHODS = (
    Method(
        "gralora",
        "LoRA in blocks: the weight's blocks have factors of their own and exchange ranks",
        "gralora",
        apply,
        default_rank=32,
        peft={"peft_type": "GRALORA"},
        options=GraloraOptions,
    ),
)
