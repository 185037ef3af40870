"""OFT: the input turned by blocks of orthogonal matrices before the base multiplies it.

Mirrors peft 0.21 tuners/oft/layer.py.

Each block is made on every pass from the upper triangle of a skew matrix, by a short series for Cayley's transform.
Source: oft
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.methods.merging import refuse_foreign
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, refuse_conv1d
from peftplan.specs.formats import BOOL, FP32, INT64, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor, bytes_of


class OftOptions(Options):
    """The blocks and how they are made orthogonal."""

    oft_block_size: Annotated[
        int, Field(ge=2, le=10**6, description="size of a block; moved to the next divisor of a target's inputs")
    ] = 32
    block_share: Annotated[bool, Field(description="one block turns all parts of the input")] = False
    num_cayley_neumann_terms: Annotated[int, Field(ge=3, le=100, description="terms of the series")] = 5
    use_cayley_neumann: Annotated[bool, Field(description="the series; else a system of equations is solved")] = (
        True
    )
    coft: Annotated[bool, Field(description="blocks are kept near the identity: projected in every pass")] = False
    eps: Annotated[float, Field(gt=0, lt=1, description="how near, with coft; no bytes")] = 6e-5


class Rotation(Module):
    """peft's OFTRotationModule: the upper triangles of all blocks, and where they lie."""

    def __init__(self, inputs: int, size: int, options: OftOptions, dtype: DType) -> None:
        super().__init__()
        self.parts, self.size = inputs // size, size
        self.blocks = 1 if options.block_share else self.parts
        self.num_terms = options.num_cayley_neumann_terms if options.use_cayley_neumann else 0
        self.projects = options.coft
        triangle = size * (size - 1) // 2
        self.weight = adapter((self.blocks, triangle), dtype)
        self.rows = Parameter((triangle,), INT64, role="buffer")
        self.cols = Parameter((triangle,), INT64, role="buffer")

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype, shape = x.dtype, x.shape
        x = t.to(x, self.weight.dtype)
        if self.projects:
            with t.no_grad():
                self._project(t)
        turn = self._cayley(t, self.weight)
        tokens = x.numel // shape[-1]
        if self.blocks != self.parts:
            turn = t.repeated(turn, (self.parts, self.size, self.size))
        shown = (self.parts, tokens, self.size)
        parts = t.view(x, shown) if self.parts == 1 else t.regrouped(x, shown)
        turned = t.einsum(parts, turn, shown)
        out = turned if self.parts == 1 else t.contiguous(turned)
        return t.to(t.view(out, shape), dtype)  # type: ignore[no-any-return]

    def whole(self, t: Ops) -> Tensor:
        """All blocks in one matrix, with zeros between them; on the host made in fp32."""
        turn = self._cayley(t, t.widened(self.weight))
        width = self.parts * self.size
        whole = t.new((width, width), width * width, turn.dtype, "block_diag", turn.numel * turn.dtype.itemsize)
        del turn
        return t.to(whole, self.weight.dtype)  # type: ignore[no-any-return]

    def _skew(self, t: Ops, triangles: Tensor) -> Tensor:
        matrix = t.filled_from(triangles, (self.blocks, self.size, self.size))
        return t.sub(matrix, matrix)  # type: ignore[no-any-return]

    def _project(self, t: Ops) -> None:
        """Blocks whose skew matrix is too long are shortened, in place."""
        skew = self._skew(t, self.weight)
        zeros = t.new((self.size, self.size), self.size**2, skew.dtype, "zeros", 0)
        difference = t.sub(skew, zeros)
        again = t.sub(skew, zeros)
        norm = t.norm(again, (self.blocks, 1, 1))
        del again
        near = t.new(norm.shape, norm.numel, BOOL, "le", bytes_of(norm))
        scaled = t.mul_scalar(t.div(difference, norm))
        moved = t.add(zeros, scaled)
        del scaled
        out = t.like(moved, "where", bytes_of(near, skew, moved))
        del moved
        triangles = t.new(self.weight.shape, self.weight.numel, out.dtype, "index")
        t.write("copy_", self.weight.dtype, bytes_of(triangles), bytes_of(self.weight))

    def _cayley(self, t: Ops, triangles: Tensor) -> Tensor:
        """1 + 2 Q + 2 Q^2 + ... + Q^n, summed in place; or (1 - Q) over (1 + Q), solved in fp32."""
        skew = self._skew(t, triangles)
        if not self.num_terms:
            eye = t.eye(self.size, FP32)
            turn = t.solve(t.add(eye, skew), t.sub(eye, skew))
            return t.to(turn, triangles.dtype)  # type: ignore[no-any-return]
        shape = skew.shape
        eye = t.eye(self.size, skew.dtype)
        total = t.new(shape, skew.numel, skew.dtype, "repeat")
        del eye
        total = t.add_scaled_(total, skew)
        square = power = t.matmul(skew, skew, shape)
        total = t.add_scaled_(total, square)
        for _ in range(3, self.num_terms - 1):
            power = t.matmul(power, skew, shape)
            total = t.add_scaled_(total, power)
        power = t.matmul(power, skew, shape)
        return t.add_in_place(total, power)  # type: ignore[no-any-return]


class OftLinear(Module):
    """base(turned x)."""

    def __init__(self, base: Linear, options: OftOptions, dtype: DType) -> None:
        super().__init__()
        self.base_layer = base
        self.oft_R = Rotation(base.in_features, divisor(base.in_features, options.oft_block_size), options, dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = t.to(x, self.oft_R.weight.dtype)
        x = t.call("oft_R", self.oft_R, x)
        result = t.call("base_layer", self.base_layer, t.to(x, dtype))
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Turn the weight's inputs: in place, or (packed, or looked through) in the weight's place."""
        refuse_foreign(self.base_layer.weight)
        weight, turn = self.base_layer.weight, self.oft_R.whole(t)
        if weight.quant is None and not t.safe:
            turned = t.matmul(turn, t.to(weight, turn.dtype), weight.shape)
            t.copy_transposed(weight, turned)
            return
        dense = t.dense_weight(self.base_layer)
        dtype = dense.dtype
        turned = t.matmul(turn, t.to(dense, turn.dtype), weight.shape)
        del dense
        if t.safe:
            t.check(turned)
        new = t.to(t.contiguous(turned), dtype)
        if weight.quant is None:
            t.place(weight, new)
        else:
            t.pack_again(weight, new)


def divisor(inputs: int, size: int) -> int:
    """The divisor of `inputs` nearest to `size`, the smaller of two as near."""
    above = next(n for n in range(min(size, inputs), inputs + 1) if inputs % n == 0)
    below = next(n for n in range(min(size, inputs), 0, -1) if inputs % n == 0)
    return below if size - below <= above - size else above


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and turn the input of every target."""
    adapted = adapt(model, method, lambda base: OftLinear(base, method.options, method.adapter_dtype))
    refuse_conv1d(adapted, "oft")


METHODS = (
    Method(
        "oft",
        "the input turned by blocks of orthogonal matrices",
        "oft",
        apply,
        peft={"peft_type": "OFT"},
        options=OftOptions,
        takes=("targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
