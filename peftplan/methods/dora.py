"""DoRA and QDoRA: LoRA with a trained magnitude for each output.

Mirrors peft 0.21 tuners/lora/dora.py, variants.py.

The norm of the adapted weight is computed anew on every pass, from the whole weight and the whole product of the
adapters: two matrices of the weight's size and a third for their sum, in the type of the layer's input, which
outlive the product. It is a constant to autograd, so that nothing of it is saved but the norms.
Source: dora, peft-lora
"""

from __future__ import annotations

from dataclasses import replace

from peftplan.errors import BadInput
from peftplan.methods import lora
from peftplan.methods.expert_targets import convert
from peftplan.methods.lora import LoraLinear, LoraLinear4bit, wrap_targets
from peftplan.methods.merging import pack_with, refuse_foreign
from peftplan.methods.quantize import PackedLinear
from peftplan.methods.wrapping import adapter
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Embedding, Linear, Module, Ops
from peftplan.specs.tensors import Tensor


class Magnitude(Module):
    """peft's DoraLinearLayer: what is added to the base's result."""

    def __init__(self, out_features: int, dtype: DType) -> None:
        super().__init__()
        self.weight = adapter((out_features,), dtype)

    def forward(self, t: Ops, x: Tensor, layer: LoraLinear, base_result: Tensor | None) -> Tensor:  # type: ignore[override]
        base = layer.base_layer
        a, b = layer.lora_A, layer.lora_B
        product, graph = self._product(t, a, b)
        with t.apart() as after:
            product = t.to(product, x.dtype)
        weight = t.to(t.dense_weight(base), x.dtype)
        norm = self._norm(t, weight, product)
        scale = t.view(t.div(self.weight, norm), (1, self.weight.numel))
        lora_result = t.call("lora_B", b, t.call("lora_A", a, x))
        if base_result is None:
            base_result = t.linear(x, t.view(weight, base.weight.shape))
        elif base.bias is not None:
            base_result = t.add(base_result, base.bias)
        out = t.add(t.mul(t.add_scalar(scale), base_result), t.mul_scalar(t.mul(scale, lora_result)))
        del graph, after, product, weight
        return out  # type: ignore[no-any-return]

    @staticmethod
    def _product(t: Ops, a: Linear, b: Linear) -> tuple[Tensor, list[object]]:
        """B @ A by way of the layers, on an identity matrix; its graph ends with the pass."""
        eye = t.eye(a.in_features, a.weight.dtype)
        cast = t.autocast_to(a.weight, t.autocast)  # kept by autocast: it belongs to the model's graph
        with t.apart() as first:
            inner = t.linear(eye, cast)
        cast = t.autocast_to(b.weight, t.autocast)
        with t.apart() as second:
            out = t.linear(inner, cast)
        return t.view(out, (b.out_features, a.in_features)), [first, second]

    def merged(self, t: Ops, layer: LoraLinear, again: bool) -> Tensor:
        """What the weight becomes; `again`: it is unpacked once more for the sum, where it is packed."""
        base = layer.base_layer
        delta = layer.delta_weight(t)
        unmerged = t.clone(t.dense_weight(base))
        wide = t.add(unmerged, t.mul_scalar(delta))
        norm = t.row_norm(wide)
        del wide
        dense = t.dense_weight(base) if again else base.weight
        scale = t.view(t.div(self.weight, norm), (self.weight.numel, 1))
        new = t.mul(scale, t.add(dense, delta))
        new = t.to(new, dense.dtype)
        del unmerged, delta, dense, norm, scale
        return new  # type: ignore[no-any-return]

    @staticmethod
    def _norm(t: Ops, weight: Tensor, product: Tensor) -> Tensor:
        with t.no_grad():  # the product is detached
            weight = t.add(weight, t.mul_scalar(product))
            return t.to(t.row_norm(weight), weight.dtype)  # type: ignore[no-any-return]


def _added(t: Ops, layer: DoraLinear | DoraLinear4bit, x: Tensor, result: Tensor) -> Tensor:
    """The base's result and what DoRA adds; with dropout the base is multiplied a second time."""
    base_result: Tensor | None = result
    if layer.dropout and t.training:
        x = t.dropout(x, layer.dropout)
        base_result = None
    added = t.call("lora_magnitude_vector", layer.lora_magnitude_vector, x, layer, base_result)
    return t.add(result, added)  # type: ignore[no-any-return]


class DoraLinear(LoraLinear):
    """A dense linear with LoRA and a magnitude."""

    def __init__(self, base: Linear, rank: int, dropout: float, dtype: DType) -> None:
        super().__init__(base, rank, dropout, dtype)
        self.lora_magnitude_vector = Magnitude(base.out_features, dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        result = t.call("base_layer", self.base_layer, x)
        dtype = result.dtype
        x = t.to(x, self.lora_A.weight.dtype)
        result = _added(t, self, x, result)
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """A scaled sum in the weight's place."""
        weight = self.base_layer.weight
        copy = t.clone(weight) if t.safe else None
        new = self.lora_magnitude_vector.merged(t, self, again=False)
        if t.safe:
            del copy
            t.check(new)
        t.place(weight, new)


class DoraLinear4bit(LoraLinear4bit):
    """Beside a packed linear, which is unpacked for its norm."""

    def __init__(self, base: PackedLinear, rank: int, dropout: float, dtype: DType) -> None:
        super().__init__(base, rank, dropout, dtype)
        self.lora_magnitude_vector = Magnitude(base.out_features, dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        result = t.call("base_layer", self.base_layer, x)
        if self.clones:
            result = t.clone(result)
        dtype = result.dtype
        if t.autocast is None:
            x = t.to(x, self.lora_A.weight.dtype)
            result = _added(t, self, x, result)
            return t.to(result, dtype)  # type: ignore[no-any-return]
        result = _added(t, self, x, result)
        return result

    def merge(self, t: Ops) -> None:
        """The same of the unpacked weight, which is packed again."""
        refuse_foreign(self.base_layer.weight)
        dense = t.dense_weight(self.base_layer)
        new = self.lora_magnitude_vector.merged(t, self, again=True)
        pack_with(t, self.base_layer.weight, new)
        del dense


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """As LoRA, with a magnitude beside every adapter."""

    def wrap(base: Linear) -> Module:
        layer = DoraLinear4bit if isinstance(base, PackedLinear) and not base.casts_always else DoraLinear
        return layer(base, method.rank, method.dropout, method.adapter_dtype)  # type: ignore[arg-type]

    if convert(model, method.targets)[1]:
        raise BadInput(
            f"--method dora: {model.family} keeps router and experts as parameters, and peft 0.21 adapts those by "
            "plain LoRA only; give --targets attention, or take --method lora"
        )
    wrap_targets(model, method, wrap, _refuse_table)


def _refuse_table(table: Embedding) -> Module:
    raise BadInput(
        "--method dora with an embedding among its --targets is not in the closed form; take --engine trace"
    )


METHOD = replace(
    lora.METHOD,
    name="dora",
    summary="LoRA with a trained magnitude for each output (weight-decomposed)",
    source="dora",
    apply=apply,
    peft={"peft_type": "LORA", "use_dora": True},
)
METHODS = (
    METHOD,
    replace(
        METHOD,
        name="qdora",
        summary="DoRA over a base stored in 4 bits (NF4, double quantisation)",
        default_quant="nf4",
        merging=lora.QLORA.merging,
        inference=lora.QLORA.inference,
    ),
)
