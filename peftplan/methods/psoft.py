"""PSOFT: an orthogonal matrix between frozen leading singular vectors of the weight.

Mirrors peft 0.21 tuners/psoft/layer.py.

The matrix is made on every pass from the upper triangle of a skew one, by Cayley's transform (a system of
equations, or a short series), and its rows and columns are scaled by trained vectors. Source: psoft
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, factoring_note, refuse_conv1d, refuse_packed
from peftplan.specs.formats import FP32, INT64
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class PsoftOptions(Options):
    """The matrix and how it is made orthogonal."""

    psoft_orth: Annotated[bool, Field(description="the matrix is orthogonal, else it is free")] = True
    psoft_mag_b: Annotated[bool, Field(description="a trained vector scales its rows")] = True
    psoft_mag_a: Annotated[bool, Field(description="a trained vector scales its columns")] = True
    use_cayley_neumann: Annotated[bool, Field(description="a series in the place of the system of equations")] = (
        False
    )
    num_cayley_neumann_terms: Annotated[int, Field(ge=1, le=100, description="terms of the series")] = 5
    ab_svd_init: Annotated[
        Literal["psoft_init", "pissa_init"], Field(description="which factor has the singular values; no bytes")
    ] = "psoft_init"
    psoft_svd: Annotated[Literal["full", "lowrank"], Field(description="how targets are factored at the start")] = (
        "full"
    )


class Rotation(Module):
    """peft's OrthLayer: x R.T, with R made of the triangle and the two vectors."""

    def __init__(self, method: MethodSpec) -> None:
        super().__init__()
        options, dtype = method.options, method.adapter_dtype
        self.size = size = method.rank
        self.terms = options.num_cayley_neumann_terms if options.use_cayley_neumann else 0
        triangle = size * (size - 1) // 2
        self.orthogonal = options.psoft_orth
        self.weight = adapter((triangle,) if self.orthogonal else (size, size), dtype)
        if self.orthogonal:
            self.rows = Parameter((triangle,), INT64, role="buffer")
            self.cols = Parameter((triangle,), INT64, role="buffer")
        if options.psoft_mag_b:
            self.vector_b = adapter((size,), dtype)
        if options.psoft_mag_a:
            self.vector_a = adapter((size,), dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        matrix = self._matrix(t)
        return t.linear(x, t.to(matrix, x.dtype))  # type: ignore[no-any-return]

    def _matrix(self, t: Ops) -> Tensor:
        size, dtype = self.size, self.weight.dtype
        made: Tensor = self.weight
        held: list[Tensor] = []
        if self.orthogonal:
            skew = self._skew(t)
            eye = t.eye(size, dtype)
            if self.terms:
                made, *held = self._series(t, eye, skew)
            else:
                skew = t.to(skew, FP32)
                made = t.solve(t.sub(eye, skew), t.add(eye, skew))
        if "vector_b" in self.parameters:
            made = t.mul(t.view(self.vector_b, (size, 1)), made)
        if "vector_a" in self.parameters:
            made = t.mul(made, t.view(self.vector_a, (1, size)))
        made = t.to(made, dtype)
        held.clear()
        return made

    def _skew(self, t: Ops) -> Tensor:
        shape = (self.size, self.size)
        zeros = t.new(shape, self.size**2, self.weight.dtype, "zeros", 0)
        matrix = t.filled_from(self.weight, shape)
        del zeros
        return t.sub(matrix, matrix)  # type: ignore[no-any-return]

    def _series(self, t: Ops, eye: Tensor, skew: Tensor) -> list[Tensor]:
        """1 + 2 Q + 2 Q^2 + ... + Q^n, summed in place; behind it the powers that peft holds until it is scaled."""
        total, shape = t.clone(eye), skew.shape
        held: list[Tensor] = []
        if self.terms > 1:
            total = t.add_scaled_(total, skew)
        if self.terms > 2:
            square = power = t.matmul(skew, skew, shape)
            total = t.add_scaled_(total, square)
            for _ in range(3, self.terms - 1):
                power = t.matmul(power, skew, shape)
                total = t.add_scaled_(total, power)
            power = t.matmul(power, skew, shape)
            total = t.add_in_place(total, power)
            held = [square, power]
        return [total, *held]


class PsoftLinear(Module):
    """base(x) + scaling * B (R - 1) A x."""

    def __init__(self, base: Linear, method: MethodSpec) -> None:
        super().__init__()
        self.dropout = method.dropout
        self.base_layer = base
        self.psoft_R = Rotation(method)
        self.psoft_A_cache = Parameter((method.rank, base.in_features), FP32, role="buffer")
        self.psoft_B_cache = Parameter((base.out_features, method.rank), FP32, role="buffer")

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        result = t.call("base_layer", self.base_layer, x)
        dtype = result.dtype
        cast = t.to(x, FP32)
        dropped = t.dropout(cast, self.dropout)
        inner = t.linear(dropped, self.psoft_A_cache)
        turned = t.call("psoft_R", self.psoft_R, inner)
        change = t.sub(turned, inner)
        delta = t.linear(change, self.psoft_B_cache)
        del change
        scaled = t.mul_scalar(delta)
        result = t.add(result, scaled)
        del scaled, cast
        return t.to(result, dtype)  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base, factor every target and put a matrix between the factors."""
    refuse_packed(method, "psoft")
    adapted = adapt(model, method, lambda base: PsoftLinear(base, method))
    refuse_conv1d(adapted, "psoft")
    for linear in adapted:
        most = min(linear.in_features, linear.out_features)
        if method.rank > most:
            raise BadInput(
                f"--rank {method.rank} with --method psoft: a target has {most} singular vectors; "
                f"give --rank {most} or less"
            )
    if method.options.psoft_svd == "full":
        factoring_note(model, adapted)


METHODS = (
    Method(
        "psoft",
        "an orthogonal matrix between frozen singular vectors of the weights",
        "psoft",
        apply,
        default_rank=32,
        peft={"peft_type": "PSOFT"},
        options=PsoftOptions,
        takes=("rank", "alpha", "dropout", "targets", "modules_to_save", "adapter_dtype"),
    ),
)
