"""RandLoRA: a full-rank sum of frozen random products, scaled by vectors. Mirrors peft 0.21 tuners/randlora.

Two frozen matrices, as large as the widest target asks for, serve all layers. On every pass the smaller one is
scaled anew for each product, to a matrix as large as the square of a target's smaller side, which is kept for
backward, and the larger one is cast again under autocast. A smaller rank makes more products, and more parameters.
Source: randlora
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.merging import add_to_weight
from peftplan.methods.method import Method, Options
from peftplan.methods.quantize import Linear4bit
from peftplan.methods.targets import matched
from peftplan.methods.wrapping import adapter, adapter_bytes, buffer_dtype, finish, freeze, put_on
from peftplan.specs.formats import BF16, FP32, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor, bytes_of


class RandloraOptions(Options):
    """What the frozen matrices are, and whether they are saved."""

    projection_prng_key: Annotated[int | None, Field(ge=0, description="seed of the shared matrices; no bytes")] = (
        None
    )
    save_projection: Annotated[bool, Field(description="the shared matrices are saved with the adapter")] = True
    sparse: Annotated[bool, Field(description="drawn as -1, 0 and 1; kept dense all the same")] = False
    very_sparse: Annotated[bool, Field(description="the same, with fewer numbers that are not 0")] = False


class Bases(Module):
    """The matrices that all layers share: rank x 1 x inputs and outputs x products x rank."""

    def __init__(self, rank: int, smaller: int, larger: int, dtype: DType) -> None:
        super().__init__()
        self.randlora_A = Parameter((rank, 1, smaller), dtype, role="buffer")
        self.randlora_B = Parameter((larger, -(-smaller // rank), rank), dtype, role="buffer")


class RandloraLinear(Module):
    """base(x) + sum over products of B (lambda * A * gamma) x, or of their transposes."""

    bases: Bases

    def __init__(self, base: Linear, bases: Bases, method: MethodSpec) -> None:
        super().__init__()
        self.dropout, self.rank = method.dropout, method.rank
        self.base_layer = base
        object.__setattr__(self, "bases", bases)  # no child: the model's stem owns it
        smaller = min(base.in_features, base.out_features)
        num_products = -(-smaller // method.rank)
        self.randlora_lambda = adapter((method.rank, num_products), method.adapter_dtype)
        self.randlora_gamma = adapter((num_products, smaller), method.adapter_dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype = x.dtype
        result = t.call("base_layer", self.base_layer, x)
        first, second = self._factors(t)
        x = t.to(x, second.dtype)
        result = t.add(result, t.mul_scalar(self._product(t, t.dropout(x, self.dropout), first, second)))
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Add the product of both, scaled; the type of the matrices on the CPU is not settled."""
        if t.host:
            raise BadInput("how peft merges randlora on the CPU is not in the closed form; merge on a GPU")
        add_to_weight(t, self.base_layer.weight, self._delta_weight)

    def _delta_weight(self, t: Ops) -> Tensor:
        first, second = self._factors(t)
        update = t.matmul(second, first, self.base_layer.weight.shape)
        scaled = t.mul_scalar(update)
        del first, second, update
        return scaled  # type: ignore[no-any-return]

    def _product(self, t: Ops, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        inner = t.linear(x, first)
        del x
        return t.linear(inner, second)  # type: ignore[no-any-return]

    def _factors(self, t: Ops) -> tuple[Tensor, Tensor]:
        """What multiplies the input, and what multiplies that: the scaled matrix meets the smaller side."""
        inputs, outputs = self.base_layer.in_features, self.base_layer.out_features
        smaller, larger, inner = min(inputs, outputs), max(inputs, outputs), self.randlora_lambda.numel
        a = t.part(self.bases.randlora_A, (self.rank, 1, smaller))
        b = t.part(self.bases.randlora_B, (larger, inner))
        scaled = t.function(
            "UniqueBaseGradBackward", self._scaled, _scaled_backward, (a, self.randlora_lambda, self.randlora_gamma)
        )
        if smaller == inputs:
            return t.view(scaled, (inner, smaller)), b
        return t.view(b, (inner, larger)), t.view(scaled, (smaller, inner))

    def _scaled(self, t: Ops) -> Tensor:
        left, right = self.randlora_lambda, self.randlora_gamma
        a = t.part(self.bases.randlora_A, (self.rank, 1, right.shape[1]))
        return t.mul(t.mul(t.view(left, (*left.shape, 1)), a), t.view(right, (1, *right.shape)))  # type: ignore[no-any-return]


class RandloraPacked(RandloraLinear):
    """Beside a packed linear: a 4-bit one's result is cloned; without autocast the wide input gives the type."""

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        base = self.base_layer
        result = t.call("base_layer", base, x)
        if isinstance(base, Linear4bit) and base.four_bit:
            result = t.clone(result)
        first, second = self._factors(t)
        expected, converts = result.dtype, t.autocast is None
        if converts:
            x = t.to(x, second.dtype)
        dropped = t.dropout(t.to(x, second.dtype), self.dropout)
        out = self._product(t, dropped, first, second)
        if converts:
            out = t.to(out, expected)
        result = t.add(result, t.mul_scalar(out))
        return t.to(result, x.dtype)  # type: ignore[no-any-return]


def _scaled_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Sequence[Tensor | None]:
    """torch.einsum from left to right: a product with the base, and one batched sum for each vector."""
    base, left, right = (t.to_detached(x, g.dtype) for x in saved)
    (rank, num_products), smaller = left.shape, right.shape[1]
    num_flop = 2 * g.numel
    product = t.like(g, "mul", bytes_of(g, base))
    grad_left = t.new(left.shape, left.numel, g.dtype, "bmm", bytes_of(product, right), num_flop)
    del product
    product = t.like(g, "mul", bytes_of(g, base))
    grad_right = t.new(right.shape, right.numel, g.dtype, "bmm", bytes_of(product, left), num_flop)
    del product
    if min(rank, num_products) > 1:
        grad_left = t.strided(grad_left)
    return (None, grad_left, grad_right)


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base, make the shared matrices, and put vectors on the targets."""
    freeze(model, method)
    found = matched(model, method.targets)
    linears = [module for _, _, module in found if isinstance(module, Linear)]
    inputs = max((linear.in_features for linear in linears), default=1)
    outputs = max((linear.out_features for linear in linears), default=1)
    made_in = FP32 if method.options.sparse or method.options.very_sparse else BF16
    dtype = buffer_dtype(method, linears, made_in)
    bases = Bases(method.rank, min(inputs, outputs), max(inputs, outputs), dtype)
    model.stem.add("randlora", bases)

    def wrap(base: Linear) -> Module:
        return (RandloraPacked if isinstance(base, Linear4bit) else RandloraLinear)(base, bases, method)

    put_on(model, method, found, wrap)
    finish(model, method)
    if method.options.save_projection:
        saved = sum(matrix.num_bytes() for matrix in bases.parameters.values())
        model.adapter_checkpoint_bytes = adapter_bytes(model) + saved


METHODS = (
    Method(
        "randlora",
        "a full-rank sum of frozen random products, scaled by trained vectors",
        "randlora",
        apply,
        default_rank=32,
        peft={"peft_type": "RANDLORA"},
        options=RandloraOptions,
        takes=("rank", "alpha", "dropout", "targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
