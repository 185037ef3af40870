"""AdaMSS: outputs in groups, each with factors of its own in one low-rank picture of the input.

Mirrors peft 0.21 tuners/adamss.

The picture is the weight's leading singular directions, frozen; outputs are clustered by them, and each cluster has
two small trained factors, run one after the other in the base's type. How large the clusters are depends on the
weights: they are taken as equal. Source: adamss
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from peftplan.methods.method import Method, Options
from peftplan.methods.targets import matched
from peftplan.methods.wrapping import (
    adapter,
    adapter_bytes,
    buffer_dtype,
    finish,
    freeze,
    put_on,
    refuse_conv1d,
    refuse_packed,
)
from peftplan.specs.formats import INT64, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class AdamssOptions(Options):
    """The clusters."""

    num_subspaces: Annotated[int, Field(ge=1, le=10**5, description="clusters of a target's outputs")] = 5
    subspace_rank: Annotated[int, Field(ge=1, le=10**5, description="rank of each cluster's factors")] = 1
    use_dynamic_rank: Annotated[
        Literal[False], Field(description="ranks by singular values, which no shape tells, are not modelled")
    ] = False


class AdamssLinear(Module):
    """base(x) + each cluster's B A of the input's picture, put at its outputs."""

    def __init__(self, base: Linear, method: MethodSpec, dtype: DType, frozen: DType) -> None:
        super().__init__()
        options, outputs = method.options, base.out_features
        self.base_layer = base
        inputs = base.in_features + (base.bias is not None)
        rank = min(method.rank, outputs, inputs)
        self.adamss_newB = Parameter((rank, inputs), frozen, role="buffer")
        self.clusters = min(options.num_subspaces, outputs)
        for i in range(self.clusters):
            size = -(-(outputs - i) // self.clusters)
            inner = min(size, options.subspace_rank, rank)
            setattr(self, f"adamss_A_{i}", adapter((inner, rank), dtype))
            setattr(self, f"adamss_B_{i}", adapter((size, inner), dtype))

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        base, previous = self.base_layer, x.dtype
        dtype = base.weight.dtype
        x = t.to(x, dtype)
        whole = x
        if base.bias is not None:
            rows = x.shape[:-1]
            ones = t.new((*rows, 1), x.numel // x.shape[-1], dtype, "ones", 0)
            whole = t.cat((x, ones), (*rows, x.shape[-1] + 1))
        result = t.call("base_layer", base, x)
        picture = t.linear(whole, t.to(self.adamss_newB, dtype))
        parts = []
        for i in range(self.clusters):
            a = t.to(self.parameters[f"adamss_A_{i}"], dtype)
            b = t.to(self.parameters[f"adamss_B_{i}"], dtype)
            part = t.linear(picture, a)
            part = t.linear(part, b)
            parts.append(part)
        shape = (*x.shape[:-1], base.out_features)
        added = t.cat(parts, shape)
        index = t.new((base.out_features,), base.out_features, INT64, "_to_copy", 0)
        added = t.scattered(added, index)
        result = t.add(result, added)
        return t.to(result, previous)  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put clusters on every target."""
    refuse_packed(method, "adamss")
    freeze(model, method)
    found = matched(model, method.targets)
    linears = [module for _, _, module in found if isinstance(module, Linear)]
    refuse_conv1d(linears, "adamss")
    frozen = buffer_dtype(method, linears)
    adapted: list[AdamssLinear] = []

    def wrap(base: Linear) -> Module:
        adapted.append(AdamssLinear(base, method, method.adapter_dtype, frozen))
        return adapted[-1]

    put_on(model, method, found, wrap)
    finish(model, method)
    pictures = {id(layer.adamss_newB) for layer in adapted}
    saved = sum(p.num_bytes() * count for _, p, count in model.parameters() if id(p) in pictures)
    model.adapter_checkpoint_bytes = adapter_bytes(model) + saved
    model.notes.append(
        "AdaMSS clusters a target's outputs by its weights: the clusters are taken as equally large, which changes "
        "no sum of their factors at subspace_rank=1"
    )


METHODS = (
    Method(
        "adamss",
        "outputs in clusters, each with factors of its own in one frozen picture of the input",
        "adamss",
        apply,
        default_rank=100,
        peft={"peft_type": "ADAMSS"},
        options=AdamssOptions,
        takes=("rank", "targets", "modules_to_save", "adapter_dtype"),
        merging="into weights and biases",
    ),
)
