"""VeRA: two frozen random matrices shared by all targets, and trained vectors between.

Mirrors peft 0.21 tuners/vera.

Both matrices are as large as the widest target asks for; each layer takes a corner of them.
Source: vera
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import Field

from peftplan.methods.merging import add_to_weight, pack_with, refuse_foreign
from peftplan.methods.method import Method, Options
from peftplan.methods.quantize import Linear4bit
from peftplan.methods.targets import matched
from peftplan.methods.wrapping import adapter, adapter_bytes, buffer_dtype, finish, freeze, put_on
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor

SharedT = TypeVar("SharedT", bound=Module)


class VeraOptions(Options):
    """What is kept of the shared matrices."""

    projection_prng_key: Annotated[int | None, Field(ge=0, description="seed of the shared matrices; no bytes")] = (
        None
    )
    save_projection: Annotated[bool, Field(description="the shared matrices are saved with the adapter")] = True


class Shared(Module):
    """The matrices that all layers share."""

    def __init__(self, rank: int, inputs: int, outputs: int, dtype: DType) -> None:
        super().__init__()
        self.vera_A = Parameter((rank, inputs), dtype, role="buffer")
        self.vera_B = Parameter((outputs, rank), dtype, role="buffer")


class VeraLinear(Module):
    """base(x) + b * (B @ (d * (A @ x)))."""

    shared: Shared

    def __init__(self, base: Linear, shared: Shared, rank: int, dropout: float, dtype: DType) -> None:
        super().__init__()
        self.dropout = dropout
        self.base_layer = base
        object.__setattr__(self, "shared", shared)  # no child: the model's stem owns it
        self.vera_lambda_b = adapter((base.out_features,), dtype)
        self.vera_lambda_d = adapter((rank,), dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        base, before = self.base_layer, x.dtype
        result = t.call("base_layer", base, x)
        dtype = result.dtype
        if isinstance(base, Linear4bit) and base.four_bit:
            result = t.clone(result)
        a = t.part(self.shared.vera_A, (self.vera_lambda_d.numel, base.in_features))
        b = t.part(self.shared.vera_B, (base.out_features, self.vera_lambda_d.numel))
        x = t.to(x, self.vera_lambda_d.dtype)
        first, second = self.vera_lambda_d, self.vera_lambda_b
        dropped = t.dropout(x, self.dropout)
        inner = t.linear(dropped, a)
        del dropped
        inner = t.mul(first, inner)
        outer = t.linear(inner, b)
        del inner
        outer = t.mul(second, outer)
        result = t.add(result, outer)
        del outer
        return t.to(t.to(result, dtype), before)  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Add to the weight, or to what it unpacks to."""
        base = self.base_layer
        if base.weight.quant is None:
            add_to_weight(t, base.weight, self._delta_weight)
            return
        refuse_foreign(base.weight)
        dense = t.dense_weight(base)
        if t.safe:
            dense = t.clone(dense)
        dense = t.add_in_place(dense, self._delta_weight(t))
        pack_with(t, base.weight, dense)

    def _delta_weight(self, t: Ops) -> Tensor:
        rank, base = self.vera_lambda_d.numel, self.base_layer
        shared, dtype = self.shared, self.shared.vera_B.dtype
        a, b = t.widened(shared.vera_A), t.widened(shared.vera_B)
        narrow = a is not shared.vera_A  # so are the vectors then
        first = t.widened(self.vera_lambda_d) if narrow else self.vera_lambda_d
        second = t.widened(self.vera_lambda_b) if narrow else self.vera_lambda_b
        left = t.mul(t.view(second, (second.numel, 1)), t.part(b, (base.out_features, rank)))
        right = t.mul(t.view(first, (rank, 1)), t.part(a, (rank, base.in_features)))
        out = t.matmul(left, right, base.weight.shape)
        del left, right
        return t.to(out, dtype) if narrow else out  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base, make the shared matrices, and put vectors on the targets."""
    share_matrices(
        model,
        method,
        "vera",
        Shared,
        lambda base, shared: VeraLinear(base, shared, method.rank, method.dropout, method.adapter_dtype),
    )


def share_matrices(
    model: ModelSpec,
    method: MethodSpec,
    name: str,
    made: Callable[[int, int, int, DType], SharedT],
    layer: Callable[[Linear, SharedT], Module],
) -> None:
    """Freeze the base, make matrices as wide as the widest target, and put on targets what multiplies by them."""
    freeze(model, method)
    found = matched(model, method.targets)
    linears = [module for _, _, module in found if isinstance(module, Linear)]
    shared = made(
        method.rank,
        max((linear.in_features for linear in linears), default=0),
        max((linear.out_features for linear in linears), default=0),
        buffer_dtype(method, linears),
    )
    model.stem.add(name, shared)
    put_on(model, method, found, lambda base: layer(base, shared))
    finish(model, method)
    if method.options.save_projection:
        saved = sum(matrix.num_bytes() for matrix in shared.parameters.values())
        model.adapter_checkpoint_bytes = adapter_bytes(model) + saved


METHODS = (
    Method(
        "vera",
        "frozen random matrices shared by all targets, trained vectors between them",
        "vera",
        apply,
        default_rank=256,
        peft={"peft_type": "VERA"},
        options=VeraOptions,
        takes=("rank", "dropout", "targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
