"""LoRA and QLoRA: a low-rank product beside a linear. Mirrors peft 0.21 tuners/lora/layer.py and bnb.py.

Source: peft-lora; the scaling, alpha/r or with rslora alpha/sqrt(r), changes values and no shape.
"""

from __future__ import annotations

from dataclasses import replace

from peftplan.methods.expert_targets import convert, wrap_parameters
from peftplan.methods.merging import add_to_weight, low_rank, pack_with, refuse_foreign
from peftplan.methods.method import Method
from peftplan.methods.quantize import PackedLinear
from peftplan.methods.targets import matched
from peftplan.methods.wrapping import Wrap, WrapEmbedding, adapter_linear, finish, freeze, put_on
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Embedding, Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class LoraLinear(Module):
    """A linear with a rank-`rank` adapter: base(x) + B(A(dropout(x))) * scaling."""

    def __init__(self, base: Linear, rank: int, dropout: float, dtype: DType) -> None:
        super().__init__()
        self.dropout = dropout
        self.base_layer = base
        self.lora_A = adapter_linear(base.in_features, rank, dtype)
        self.lora_B = adapter_linear(rank, base.out_features, dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        result = t.call("base_layer", self.base_layer, x)
        dtype = result.dtype
        x = t.to(x, self.lora_A.weight.dtype)
        result = t.add(result, self.delta(t, x))
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def delta(self, t: Ops, x: Tensor) -> Tensor:
        """What the adapter adds, scaled."""
        return t.mul_scalar(self.product(t, x))  # type: ignore[no-any-return]

    def product(self, t: Ops, x: Tensor) -> Tensor:
        """The input through both factors."""
        return t.call("lora_B", self.lora_B, t.call("lora_A", self.lora_A, t.dropout(x, self.dropout)))  # type: ignore[no-any-return]

    def delta_weight(self, t: Ops) -> Tensor:
        """The same as a matrix of the weight's size."""
        return low_rank(t, self.lora_A.weight, self.lora_B.weight, self.base_layer.weight.shape)

    def merge(self, t: Ops) -> None:
        """Add it to the weight."""
        add_to_weight(t, self.base_layer.weight, self.delta_weight, named=True)


class LoraLinear4bit(LoraLinear):
    """Beside a packed linear: the 4-bit base's output is cloned, and under autocast no cast is made.

    Layers over other quantisers' linears scale the product once it is cast back, or add it in place.
    """

    def __init__(self, base: PackedLinear, rank: int, dropout: float, dtype: DType) -> None:
        super().__init__(base, rank, dropout, dtype)
        self.clones, self.scales_last, self.adds_in_place = base.clones, base.scales_last, base.adds_in_place

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        result = t.call("base_layer", self.base_layer, x)
        if self.clones:
            result = t.clone(result)
        convert = t.autocast is None
        dtype = result.dtype
        if convert:
            x = t.to(x, self.lora_A.weight.dtype)
        output = self.product(t, x) if self.scales_last else self.delta(t, x)
        if convert:
            output = t.to(output, dtype)
        if self.scales_last:
            output = t.mul_scalar(output)
        result = t.add_in_place(result, output) if self.adds_in_place else t.add(result, output)
        return result  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Unpack, add, pack again; an 8-bit weight is unpacked to fp32 and cast to the adapters' type."""
        refuse_foreign(self.base_layer.weight)
        dense = t.dense_weight(self.base_layer)
        delta = self.delta_weight(t)
        summed = t.add(dense if self.clones else t.to(dense, delta.dtype), delta)
        pack_with(t, self.base_layer.weight, summed)


class LoraEmbedding(Module):
    """An embedding with an adapter: table(ids) + (A[ids] @ B) * scaling."""

    def __init__(self, base: Embedding, rank: int, dtype: DType) -> None:
        super().__init__()
        rows, width = base.weight.shape
        self.base_layer = base
        self.lora_embedding_A = Parameter((rank, rows), dtype, role="adapter")
        self.lora_embedding_B = Parameter((width, rank), dtype, role="adapter")

    @property
    def weight(self) -> Parameter:
        """The frozen table."""
        return self.base_layer.weight

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        asked, t.leaf_ids = t.leaf_ids, None  # the embeddings of this module ask for a gradient, not the table's
        result = t.call("base_layer", self.base_layer, x)
        dtype = result.dtype
        a, b = self.lora_embedding_A, self.lora_embedding_B
        after_a = t.embedding(x, t.view(a, (a.shape[1], a.shape[0])))
        t.leaf_ids = asked
        output = t.mul_scalar(t.linear(after_a, t.view(b, b.shape)))
        return t.to(t.add(result, output), dtype)  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Add the product of both factors to the table, in its type."""
        table, a, b = self.base_layer.weight, self.lora_embedding_A, self.lora_embedding_B
        add_to_weight(t, table, lambda t: t.to(low_rank(t, a, b, table.shape), table.dtype))


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze (and pack) the base, then put adapters beside the targeted modules."""
    wrap_targets(
        model, method, linear_layer(method), lambda table: LoraEmbedding(table, method.rank, method.adapter_dtype)
    )


def linear_layer(method: MethodSpec) -> Wrap:
    """Makes LoRA's layer over a linear, packed or not."""

    def wrap(base: Linear) -> Module:
        layer = LoraLinear4bit if isinstance(base, PackedLinear) and not base.casts_always else LoraLinear
        return layer(base, method.rank, method.dropout, method.adapter_dtype)  # type: ignore[arg-type]

    return wrap


def wrap_targets(model: ModelSpec, method: MethodSpec, wrap: Wrap, wrap_embedding: WrapEmbedding) -> None:
    """Freeze the base, put these layers on its targets and LoRA on bare parameters among them."""
    freeze(model, method)
    targets, parameters = convert(model, method.targets)
    found = matched(model, targets, not parameters, method.targets)
    wrap_parameters(model, parameters, method)
    adapted = put_on(model, method, found, wrap, wrap_embedding)
    widest = max((min(linear.in_features, linear.out_features) for linear in adapted), default=0)
    if widest and method.rank > widest:
        model.notes.append(
            f"rank {method.rank} is above the smaller side of every targeted matrix (at most {widest}): "
            "peft allows it, but the product cannot have more than that rank"
        )
    finish(model, method)


METHOD = Method(
    "lora",
    "frozen base, low-rank adapters beside the targeted linears",
    "lora",
    apply,
    peft={"peft_type": "LORA"},
)
QLORA = replace(
    METHOD,
    name="qlora",
    summary="LoRA over a base stored in 4 bits (NF4, double quantisation)",
    source="qlora",
    default_quant="nf4",
    merging="into weights that are unpacked first",
    inference="none once merged into 16 bits; an added product beside packed weights",
)
METHODS = (METHOD, QLORA)
