"""LoKr: a Kronecker product, added to the weight. Mirrors peft 0.21 tuners/lokr/layer.py.

The whole delta weight is made on every pass, once unscaled and once scaled; the latter is kept. Source: lokr
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.methods.merging import add_to_weight, refuse_packed_merge
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, refuse_conv1d, refuse_packed
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class LokrOptions(Options):
    """How a matrix is parted into two factors."""

    decompose_both: Annotated[bool, Field(description="the smaller factor is a low-rank product too")] = False
    decompose_factor: Annotated[
        int, Field(ge=-1, le=10**6, description="size of the smaller factor; -1: about the square root")
    ] = -1


class LokrLinear(Module):
    """base(x) + kron(w1, w2) x; either factor is one matrix, or a product of two where that is smaller."""

    def __init__(self, base: Linear, rank: int, options: LokrOptions, dtype: DType) -> None:
        super().__init__()
        self.base_layer = base
        inner, outer = (parted(size, options.decompose_factor) for size in (base.in_features, base.out_features))
        self.shapes = (outer[0], inner[0]), (outer[1], inner[1])
        low = options.decompose_both and 2 * rank < max(self.shapes[0]), 2 * rank < max(self.shapes[1])
        self.factors: list[tuple[Parameter, ...]] = []
        for number, (rows, columns) in enumerate(self.shapes, 1):
            if low[number - 1]:
                pair = adapter((rows, rank), dtype), adapter((rank, columns), dtype)
                for letter, parameter in zip("ab", pair):
                    setattr(self, f"lokr_w{number}_{letter}", parameter)
                self.factors.append(pair)
            else:
                whole = adapter((rows, columns), dtype)
                setattr(self, f"lokr_w{number}", whole)
                self.factors.append((whole,))

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype = x.dtype
        result = t.call("base_layer", self.base_layer, x)
        result = t.add(result, self.delta(t, x))
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def delta(self, t: Ops, x: Tensor) -> Tensor:
        """What is added to the base's result."""
        weight = self._weight(t)
        x = t.to(x, weight.dtype)
        return t.linear(x, weight)  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Add it to a dense weight."""
        weight = self.base_layer.weight
        refuse_packed_merge(weight, "peft 0.21 adds lokr's delta to the packed numbers, which fails")
        add_to_weight(t, weight, self._weight)

    def _weight(self, t: Ops) -> Tensor:
        first = self._factor(t, 0)
        second = self._factor(t, 1)
        (a, c), (b, d) = self.shapes
        product = t.mul(t.view(first, (a, 1, c, 1)), t.view(second, (1, b, 1, d)))
        product = t.view(product, self.base_layer.weight.shape)
        return t.mul_scalar(product)  # type: ignore[no-any-return]

    def _factor(self, t: Ops, number: int) -> Tensor:
        parts = self.factors[number]
        return parts[0] if len(parts) == 1 else t.matmul(*parts, self.shapes[number])


def parted(size: int, factor: int) -> tuple[int, int]:
    """A size as a product of two, the smaller first: by `factor`, or as near to each other as may be."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = size if factor == -1 else factor
    best = 1, size
    for small in range(2, size):
        large, rest = divmod(size, small)
        if rest:
            continue
        if small + large > sum(best) or small > most or best[0] >= best[1]:
            break
        best = small, large
    return min(best), max(best)


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put a Kronecker product on every target."""
    refuse_packed(method, "lokr", ("nf4", "fp4"))
    adapted = adapt(model, method, lambda base: LokrLinear(base, method.rank, method.options, method.adapter_dtype))
    refuse_conv1d(adapted, "lokr")


METHODS = (
    Method(
        "lokr",
        "a Kronecker product, added to the weight",
        "lokr",
        apply,
        default_rank=8,
        peft={"peft_type": "LOKR"},
        options=LokrOptions,
        takes=("rank", "alpha", "targets", "modules_to_save", "adapter_dtype"),
    ),
)
