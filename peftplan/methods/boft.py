"""BOFT: inputs turned by a matrix of orthogonal blocks, outputs scaled. Mirrors peft 0.21 tuners/boft/layer.py.

The blocks are made orthogonal on every pass by solving Cayley's equation, and put along the diagonal of a matrix
over all inputs, which two permutations, dense matrices of that size, then enclose: the permutation is a buffer of
fp32 for every target. Read as peft runs where its CUDA extension cannot be built: without it peft takes one
butterfly factor, whatever is asked for. Source: boft
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, refuse_conv1d
from peftplan.specs.formats import FP32, INT64
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class BoftOptions(Options):
    """The blocks: how large, or how many."""

    boft_block_size: Annotated[
        int,
        Field(ge=0, le=10**6, description="size of a block, a divisor of all targets' inputs; 0: by their number"),
    ] = 4
    boft_block_num: Annotated[
        int,
        Field(ge=0, le=10**6, description="blocks of a target, with boft_block_size=0; a divisor of its inputs"),
    ] = 0
    boft_n_butterfly_factor: Annotated[
        Literal[1], Field(description="factors of the turn; more of them take peft's CUDA extension, not modelled")
    ] = 1


class BoftLinear(Module):
    """(base(R x) - bias) * s + bias."""

    applied_often = True

    def __init__(self, base: Linear, method: MethodSpec) -> None:
        super().__init__()
        options, inputs = method.options, base.in_features
        size = options.boft_block_size or max(1, inputs // options.boft_block_num)
        self.dropout, self.num_blocks, self.size = method.dropout, max(1, inputs // size), size
        self.base_layer = base
        self.boft_R = adapter((1, self.num_blocks, size, size), method.adapter_dtype)
        self.boft_s = adapter((base.out_features, 1), method.adapter_dtype)
        self.boft_P = Parameter((1, inputs, inputs), FP32, role="buffer")

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        base, dtype, inputs, outputs = self.base_layer, x.dtype, self.base_layer.in_features, self.boft_s.numel
        square, batch = (inputs, inputs), (1, inputs, inputs)
        turn, scale = t.eye(inputs, dtype), t.new((outputs, 1), outputs, dtype, "ones", 0)
        blocks = self._orthogonal(t)
        if self.dropout and t.training:
            blocks = self._with_identities(t, blocks)
        diagonal = t.view(t.block_diagonal(blocks), batch)
        permutation = t.to(self.boft_P, dtype)
        diagonal = t.to(diagonal, dtype)
        whole = t.matmul(diagonal, t.view(permutation, batch), batch)
        whole = t.matmul(permutation, whole, batch)
        turn = t.matmul(t.slice(whole, square), turn, square)
        scale = t.mul(self.boft_s, scale)
        turn = t.to(turn, dtype)
        x = t.linear(x, turn)
        result = t.call("base_layer", base, x)
        if base.bias is not None:
            result = t.sub(result, base.bias)
        result = t.mul(result, t.view(scale, (outputs,)))
        if base.bias is not None:
            result = t.add(result, base.bias)
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def _orthogonal(self, t: Ops) -> Tensor:
        """All blocks by Cayley's transform, solved in fp32."""
        shape = (self.num_blocks, self.size, self.size)
        data = t.view(self.boft_R, shape)
        skew = t.mul_scalar(t.sub(data, data))
        eye = t.part(t.eye(self.size, FP32), shape)
        return t.to(t.solve(t.add(eye, skew), t.sub(eye, skew)), data.dtype)  # type: ignore[no-any-return]

    def _with_identities(self, t: Ops, blocks: Tensor) -> Tensor:
        """Some blocks replaced by the identity: peft's dropout."""
        count, kind = self.num_blocks, (self.num_blocks, 1, 1)
        replaced = int(self.dropout * count)
        ones = t.new((replaced,), replaced, FP32, "ones", 0)
        zeros = t.new((count - replaced,), count - replaced, FP32, "zeros", 0)
        mask = t.cat((ones, zeros), (count,))
        del ones, zeros
        order = t.new((count,), count, INT64, "_to_copy")
        mask = t.new((count,), count, FP32, "index")
        del order
        whole = t.new(kind, count, FP32, "zeros", 0)
        t.write("copy_", FP32, 4 * count, 4 * count)
        eye = t.repeated(t.eye(self.size, FP32), blocks.shape)
        kept = t.mul(t.add_scalar(whole), blocks)
        return t.add(kept, t.mul(whole, eye))  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base, turn the input of every target and scale its output."""
    size, number = method.options.boft_block_size, method.options.boft_block_num
    if bool(size) is bool(number):
        raise BadInput(
            f"--method-option boft_block_size={size} with boft_block_num={number}: peft takes one of them, and the "
            "other is 0; give --method-option boft_block_size=0 with a boft_block_num"
        )
    adapted = adapt(model, method, lambda base: BoftLinear(base, method))
    refuse_conv1d(adapted, "boft")
    for linear in adapted:
        if linear.in_features % (size or number):
            raise BadInput(
                f"--method-option boft_block_{'size' if size else 'num'}={size or number} does not divide the "
                f"{linear.in_features} inputs of a target; give a divisor of all targets' inputs"
            )
    model.notes.append(
        "BOFT as peft runs it without its CUDA extension, which takes ninja and a compiler to build; with it, "
        "one kernel puts the blocks along the diagonal"
    )


METHODS = (
    Method(
        "boft",
        "inputs turned by orthogonal blocks between permutations, outputs scaled",
        "boft",
        apply,
        peft={"peft_type": "BOFT"},
        options=BoftOptions,
        takes=("dropout", "targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
