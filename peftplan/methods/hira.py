"""HiRA: the weight times a low-rank matrix, entry by entry, is added to it. Mirrors peft 0.21 tuners/hira.

The product of both factors is as large as the weight, and so is what the weight makes of it: every target
makes both on every pass, and holds what backward needs of them. Source: hira
"""

from __future__ import annotations

from peftplan.methods.method import Method
from peftplan.methods.quantize import Linear4bit
from peftplan.methods.wrapping import adapt, adapter
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Conv1D, Embedding, Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class HiraLinear(Module):
    """base(x) + (W * (B A)) x."""

    def __init__(self, base: Linear, method: MethodSpec) -> None:
        super().__init__()
        self.dropout = method.dropout
        self.base_layer = base
        self.hira_A = adapter((method.rank, base.in_features), method.adapter_dtype)
        self.hira_B = adapter((base.out_features, method.rank), method.adapter_dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        base, a, b = self.base_layer, self.hira_A, self.hira_B
        result = t.call("base_layer", base, x)
        dtype = result.dtype
        product = t.matmul(
            t.view(a, a.shape[::-1]), t.view(b, b.shape[::-1]), (base.in_features, base.out_features)
        )
        x = t.to(x, a.dtype)
        dropped = t.dropout(x, self.dropout)
        shown = t.view(product, (base.out_features, base.in_features))
        frozen = t.view(base.weight, shown.shape)
        if isinstance(base, Conv1D):
            t.ask_gradient(frozen)  # peft's transpose makes a new parameter of it, and those ask
        weight = t.mul(frozen, shown)
        del shown, frozen
        added = t.linear(dropped, weight)
        del weight
        result = t.add(result, added)
        return t.to(result, dtype)  # type: ignore[no-any-return]


class HiraPacked(HiraLinear):
    """The same over a packed linear, whose weight is unpacked on every pass."""

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        base: Linear4bit = self.base_layer  # type: ignore[assignment]
        unpacked = None if base.clones else t.dense_weight(base)
        result = t.call("base_layer", base, x)
        if base.clones:
            result = t.clone(result)
            unpacked = t.dense_weight(base)
        dtype, converts = result.dtype, t.autocast is None
        if converts:
            x = t.to(x, self.hira_A.dtype)
        dropped = t.dropout(x, self.dropout)
        product = t.matmul(self.hira_B, self.hira_A, (base.out_features, base.in_features))
        weight = t.mul(unpacked, product)
        added = t.linear(dropped, weight)
        if converts:
            added = t.to(added, dtype)
        result = t.add(result, added)
        return t.to(result, dtype) if converts else result  # type: ignore[no-any-return]


class HiraEmbedding(Module):
    """table(ids) + (table * (B A).T)(ids): the whole table is scaled on every pass."""

    def __init__(self, base: Embedding, method: MethodSpec) -> None:
        super().__init__()
        rows, width = base.weight.shape
        self.base_layer = base
        self.hira_embedding_A = adapter((method.rank, rows), method.adapter_dtype)
        self.hira_embedding_B = adapter((width, method.rank), method.adapter_dtype)

    @property
    def weight(self) -> Parameter:
        """The frozen table."""
        return self.base_layer.weight

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        asked, t.leaf_ids = t.leaf_ids, None  # the embeddings of this module ask for a gradient, not the table's
        result = t.call("base_layer", self.base_layer, x)
        dtype, table = result.dtype, self.base_layer.weight
        product = t.matmul(self.hira_embedding_B, self.hira_embedding_A, table.shape[::-1])
        scaled = t.mul(table, t.view(product, table.shape))
        added = t.embedding(x, scaled)
        t.leaf_ids = asked
        result = t.add(result, added)
        return t.to(result, dtype)  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put factors beside every target."""

    def wrap(base: Linear) -> Module:
        return (HiraPacked if isinstance(base, Linear4bit) else HiraLinear)(base, method)

    adapted = adapt(model, method, wrap, lambda table: HiraEmbedding(table, method))
    if any(isinstance(linear, Conv1D) for linear in adapted):
        model.plays_each = True  # gradients that no optimizer takes stay until the loss goes


METHODS = (
    Method(
        "hira",
        "the weight times a low-rank matrix, entry by entry",
        "hira",
        apply,
        default_rank=32,
        peft={"peft_type": "HIRA"},
        takes=("rank", "dropout", "targets", "modules_to_save", "adapter_dtype"),
        merging="into the weights; peft keeps those of before on the CPU, to take it out again",
    ),
)
