"""HRA: the input turned by a chain of Householder reflections. Mirrors peft 0.21 tuners/hra/layer.py.

The product of all reflections, a matrix over the inputs, is made anew on every pass, one reflection after the
other: what each step multiplied is kept for backward, as many matrices as there are reflections. The frozen weight
times that product is a weight of its own, which the input then meets.
Source: hra
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, refuse_conv1d, refuse_packed
from peftplan.specs.formats import FP32
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor


class HraOptions(Options):
    """How the reflections stand to one another."""

    apply_GS: Annotated[bool, Field(description="made orthogonal to one another (Gram-Schmidt)")] = (  # noqa: N815
        False  # the name is peft's
    )


class HraLinear(Module):
    """(weight @ (1 - 2 u1 u1') @ (1 - 2 u2 u2') ...) x."""

    applied_often = True

    def __init__(self, base: Linear, method: MethodSpec) -> None:
        super().__init__()
        self.base_layer = base
        self.orthogonal = method.options.apply_GS
        self.hra_u = adapter((base.in_features, method.rank), method.adapter_dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        base, dtype, size = self.base_layer, x.dtype, self.base_layer.in_features
        eye = t.eye(size, FP32)
        delta = self._delta_weight(t)
        turned = t.matmul(t.to(eye, delta.dtype), delta, (size, size))
        del eye
        weight = t.to(base.weight, turned.dtype)
        turned = t.matmul(weight, turned, (base.out_features, size))
        bias = t.to(base.bias, turned.dtype) if base.bias is not None else None
        x = t.to(x, turned.dtype)
        return t.to(t.linear(x, turned, bias), dtype)  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """The weight times the product of all reflections takes its place."""
        weight = self.base_layer.weight
        copy = t.clone(weight) if t.safe else weight
        delta = self._delta_weight(t)
        copy = t.matmul(t.to(copy, delta.dtype), delta, weight.shape)
        if t.safe:
            t.check(copy)
        t.place(weight, t.to(copy, weight.dtype))

    def _delta_weight(self, t: Ops) -> Tensor:
        return self._orthogonal(t) if self.orthogonal else self._chain(t)

    def _column(self, t: Ops, matrix: Tensor) -> Tensor:
        return t.slice(matrix, (matrix.shape[0], 1))  # type: ignore[no-any-return]

    def _chain(self, t: Ops) -> Tensor:
        """One reflection after the other, each a column over its norm."""
        u, (size, rank) = self.hra_u, self.hra_u.shape
        u = t.div(u, t.norm(u, (rank,)))
        product: Tensor = t.eye(size, u.dtype)
        for _ in range(rank):
            column = self._column(t, u)
            twice = t.mul_scalar(product)
            seen = t.matmul(twice, column, (size, 1))
            del twice
            taken = t.matmul(seen, t.view(column, (1, size)), (size, size))
            del seen
            product = t.sub(product, taken)
            del taken
        return product

    def _orthogonal(self, t: Ops) -> Tensor:
        """All at once, of columns that each lose what they share with those before them."""
        size, rank = self.hra_u.shape
        first = self._column(t, self.hra_u)
        norm = t.norm(self._column(t, self.hra_u))
        columns = [t.div(first, norm)]
        del first, norm
        for number in range(1, rank):
            column = self._column(t, self.hra_u)
            for j in range(number):
                shared = t.matmul(t.view(columns[j], (1, size)), column, (1, 1))
                taken = t.mul(shared, columns[j])
                del shared
                column = t.sub(column, taken)
                del taken
            columns.append(t.div(column, t.norm(column)))
        joined = t.cat(columns, (size, rank))
        columns.clear()
        eye = t.eye(size, self.hra_u.dtype)
        return t.sub(  # type: ignore[no-any-return]
            eye, t.matmul(t.mul_scalar(joined), t.view(joined, (rank, size)), (size, size))
        )


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and turn the input of every target."""
    refuse_packed(method, "hra")
    adapted = adapt(model, method, lambda base: HraLinear(base, method))
    refuse_conv1d(adapted, "hra")
    widest = max((linear.in_features for linear in adapted), default=0)
    if method.rank > widest:
        raise BadInput(
            f"--rank {method.rank} with --method hra: more reflections than the {widest} inputs of any target turn "
            f"nothing further; give at most {widest}"
        )


METHODS = (
    Method(
        "hra",
        "the input turned by a chain of Householder reflections",
        "hra",
        apply,
        default_rank=8,
        peft={"peft_type": "HRA"},
        options=HraOptions,
        takes=("rank", "targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
