"""BD-LoRA: LoRA with one factor block-diagonal, so that each GPU of a tensor-parallel server holds its own blocks.

Mirrors peft 0.21 tuners/lora/variants.py (BlockDiagonalLinear, BdLoraLinearVariant).

A is block-diagonal over linears that are split by rows, B over those split by columns; such a factor has its blocks
alone. Source: bdlora
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.targets import matched
from peftplan.methods.wrapping import adapter, adapter_linear, finish, freeze, put_on, refuse_conv1d
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Conv1D, Linear, Module, Ops
from peftplan.specs.tensors import Tensor


class BdloraOptions(Options):
    """Which factor of which targets is block-diagonal."""

    target_modules_bd_a: Annotated[
        tuple[str, ...], Field(description="parts of the names of targets whose A is block-diagonal")
    ] = ("o_proj", "down_proj")
    target_modules_bd_b: Annotated[
        tuple[str, ...], Field(description="parts of the names of targets whose B is block-diagonal")
    ] = ("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj")
    nblocks: Annotated[int, Field(ge=1, le=10**4, description="blocks: GPUs that serve together")] = 2
    match_strict: Annotated[bool, Field(description="targets that are in neither list are refused")] = True

    def peft_fields(self) -> dict[str, Any]:
        """peft keeps them in a config of their own."""
        return {"use_bdlora": super().peft_fields()}


class BlockDiagonal(Module):
    """Blocks [outputs / n, inputs / n] along the diagonal of a matrix, stacked."""

    def __init__(self, inputs: int, outputs: int, blocks: int, dtype: DType) -> None:
        super().__init__()
        self.blocks, self.outputs, self.width = blocks, outputs, inputs // blocks
        self.weight = adapter((outputs, self.width), dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        blocks, rows, tokens = self.blocks, self.outputs // self.blocks, x.numel // x.shape[-1]
        apart = t.regrouped if blocks > 1 else t.view
        out = t.einsum(
            apart(x, (blocks, tokens, self.width)),
            apart(self.weight, (blocks, rows, self.width)),
            (blocks, tokens, rows),
        )
        if blocks > 1 and rows > 1:
            out = t.contiguous(out)
        return t.view(out, (*x.shape[:-1], self.outputs))  # type: ignore[no-any-return]


class BdloraLinear(Module):
    """base(x) + B(A(dropout(x))) * scaling, added in place."""

    def __init__(self, base: Linear, method: MethodSpec, diagonal: str) -> None:
        super().__init__()
        blocks, rank, dtype = method.options.nblocks, method.rank, method.adapter_dtype
        self.dropout = method.dropout
        self.base_layer = base
        for name, inputs, outputs in (("A", base.in_features, rank), ("B", rank, base.out_features)):
            if name == diagonal and (inputs % blocks or outputs % blocks):
                raise BadInput(
                    f"--method-option nblocks={blocks} does not divide a block-diagonal factor of {inputs} inputs "
                    f"and {outputs} outputs; give a divisor of both, or another --rank"
                )
            factor = BlockDiagonal(inputs, outputs, blocks, dtype) if name == diagonal else None
            self.add(f"lora_{name}", factor or adapter_linear(inputs, outputs, dtype))
        self.dtype = dtype

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        result = t.call("base_layer", self.base_layer, x)
        cast = t.to(x, self.dtype)
        dropped = t.dropout(cast, self.dropout)
        inner = t.call("lora_A", self.children["lora_A"], dropped)
        outer = t.call("lora_B", self.children["lora_B"], inner)
        del inner
        scaled = t.mul_scalar(outer)
        del outer
        result = t.add_in_place(result, scaled)
        del scaled, cast, dropped
        return result  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put adapters beside the targets, one factor of each block-diagonal."""
    if method.quant is not None:
        raise BadInput(
            f"--method bdlora with --quant {method.quant.kind}: over packed linears peft 0.21 leaves out the "
            "blocks and puts plain LoRA; leave --quant out, or take --method qlora"
        )
    freeze(model, method)
    found = matched(model, method.targets)
    refuse_conv1d([module for _, _, module in found if isinstance(module, Conv1D)], "bdlora")
    diagonal = {id(module): _diagonal(name, method.options) for _, name, module in found}
    put_on(model, method, found, lambda base: BdloraLinear(base, method, diagonal[id(base)]))
    finish(model, method)


def _diagonal(path: str, options: BdloraOptions) -> str:
    """Which factor of a target is block-diagonal: A, B or none."""
    lists = {"A": options.target_modules_bd_a, "B": options.target_modules_bd_b}
    hits = [factor for factor, parts in lists.items() if any(part in path for part in parts)]
    if len(hits) > 1:
        raise BadInput(
            f"--method bdlora: {path} is in both target_modules_bd_a and target_modules_bd_b; leave one of them out"
        )
    if not hits and options.match_strict:
        raise BadInput(
            f"--method bdlora: {path} is in neither target_modules_bd_a nor target_modules_bd_b; name it in one of "
            "them, or give --method-option match_strict=false"
        )
    return hits[0] if hits else ""


METHODS = (
    Method(
        "bdlora",
        "LoRA with one factor block-diagonal, for tensor-parallel servers",
        "bdlora",
        apply,
        peft={"peft_type": "LORA"},
        options=BdloraOptions,
    ),
)
