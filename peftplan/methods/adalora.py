"""AdaLoRA: three factors, ranks that are cut during training, and an orthogonal term in the loss.

Mirrors peft 0.21 tuners/adalora/layer.py, bnb.py and model.py (the term is computed behind the loss, over the
factors of all layers, whose gradients then wait for those that come through the layers). Ranks start at
`init_r`; what is cut is masked, so that bytes stay. Source: adalora
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.merging import add_to_weight, refuse_packed_merge
from peftplan.methods.method import Method, Options
from peftplan.methods.quantize import Linear4bit, PackedLinear
from peftplan.methods.wrapping import adapt, adapter
from peftplan.specs.formats import FP32, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor


class AdaloraOptions(Options):
    """The schedule of ranks."""

    init_r: Annotated[
        int | None, Field(ge=1, le=10**6, description="rank at the start; default one and a half of --rank")
    ] = None
    target_r: Annotated[
        int | None, Field(ge=1, le=10**6, description="average rank at the end; default --rank")
    ] = None
    total_step: Annotated[int, Field(ge=2, description="steps of the schedule; no bytes")] = 1000


class SvdLinear(Module):
    """base(x) + dropout(x) @ (A * E).T @ B.T * scaling / ranknum, added in place where the base is dense."""

    applied_often = True  # the orthogonal term takes the factors too

    def __init__(self, base: Linear, rank: int, dropout: float, dtype: DType) -> None:
        super().__init__()
        self.dropout = dropout
        self.base_layer = base
        self.lora_A = adapter((rank, base.in_features), dtype)
        self.lora_B = adapter((base.out_features, rank), dtype)
        self.lora_E = adapter((rank, 1), dtype)
        self.ranknum = adapter((1,), FP32, trainable=False)  # peft never casts it

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        result = t.call("base_layer", self.base_layer, x)
        ranknum = t.add_scalar(self.ranknum)
        x = t.to(x, self.lora_A.dtype)
        delta = t.mul_scalar(self.product(t, x))
        delta = t.div(delta, ranknum)
        return t.add_in_place(result, delta)  # type: ignore[no-any-return]

    def product(self, t: Ops, x: Tensor) -> Tensor:
        """The input through all three factors."""
        dropped = t.dropout(x, self.dropout)
        scaled = t.mul(self.lora_A, self.lora_E)
        inner = t.linear(dropped, scaled)
        del dropped, scaled
        out = t.linear(inner, t.view(self.lora_B, self.lora_B.shape))
        return out  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Add the product of the factors to a dense weight."""
        weight = self.base_layer.weight
        refuse_packed_merge(weight, "peft 0.21 has no merge of adalora into packed weights")
        add_to_weight(t, weight, self._delta_weight)

    def _delta_weight(self, t: Ops) -> Tensor:
        shape = self.base_layer.weight.shape
        whole = t.mul_scalar(t.matmul(self.lora_B, t.mul(self.lora_A, self.lora_E), shape))
        return t.div(whole, t.add_scalar(self.ranknum))  # type: ignore[no-any-return]

    def terms(self, t: Ops) -> list[Tensor]:
        """The norms of A @ A.T - 1 and of B.T @ B - 1."""
        a, b, rank = self.lora_A, self.lora_B, self.lora_E.numel
        found = []
        for left, right in ((a, t.view(a, (a.shape[1], rank))), (t.view(b, (rank, b.shape[0])), b)):
            covariance = t.matmul(left, right, (rank, rank))
            identity = t.like(covariance, "empty_like", 0)
            found.append(t.norm(t.add(covariance, identity)))
        return found


class SvdPacked(SvdLinear):
    """Beside a packed linear: the result of a 4-bit one is cloned, and added to in place."""

    def __init__(self, base: Linear4bit, rank: int, dropout: float, dtype: DType) -> None:
        super().__init__(base, rank, dropout, dtype)
        self.four_bit = base.four_bit

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        result = t.call("base_layer", self.base_layer, x)
        if self.four_bit:
            result = t.clone(result)
        converts, expected = t.autocast is None, result.dtype
        if converts:
            x = t.to(x, self.lora_A.dtype if self.four_bit else FP32)
        ranknum = t.add_scalar(self.ranknum)
        out = self.product(t, x)
        if converts:
            out = t.to(out, expected)
        out = t.div(t.mul_scalar(out), ranknum)
        return t.add_in_place(result, out) if self.four_bit else t.add(result, out)  # type: ignore[no-any-return]


class SvdQuantised(SvdLinear):
    """Beside a linear of gptqmodel: without autocast the input in fp32; the whole term is cast back, then added."""

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        result = t.call("base_layer", self.base_layer, x)
        converts, expected = t.autocast is None, result.dtype
        if converts:
            x = t.to(x, FP32)
        ranknum = t.add_scalar(self.ranknum)
        out = t.div(t.mul_scalar(self.product(t, x)), ranknum)
        if converts:
            out = t.to(out, expected)
        return t.add_in_place(result, out)  # type: ignore[no-any-return]


def start_rank(method: MethodSpec) -> int:
    """The rank that a run starts with."""
    return method.options.init_r or method.rank + method.rank // 2


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base, put three factors on every target, and the orthogonal term behind the loss."""
    rank, target = start_rank(method), method.options.target_r or method.rank
    if target > rank:
        raise BadInput(
            f"--method adalora cuts ranks, and would start with {rank} to end with {target}; "
            "give --method-option init_r above target_r"
        )

    def wrap(base: Linear) -> Module:
        layer: type[SvdLinear] = SvdLinear
        if isinstance(base, PackedLinear) and not base.taken_for_dense:
            layer = SvdPacked if isinstance(base, Linear4bit) else SvdQuantised
        return layer(base, rank, method.dropout, method.adapter_dtype)

    adapt(model, method, wrap)
    model.plays_each = True
    model.behind_loss = lambda t, loss: _orthogonal(t, model, loss)


def _orthogonal(t: Ops, model: ModelSpec, loss: Tensor) -> Tensor:
    """The loss with the mean of all terms added in place."""
    total: list[Tensor] = []
    layer = 0
    for run in model.runs:
        for _ in range(run.count):
            t.layer = layer
            for _, module in run.block.walk():
                if isinstance(module, SvdLinear):
                    for term in module.terms(t):
                        total[:] = [t.add_in_place(total[0], term) if total else t.add_scalar(term)]
            layer += 1
    t.layer = -1
    if not total:
        return loss
    mean = t.mul_scalar(total.pop(), "div")
    return t.add_in_place(loss, t.mul_scalar(mean))  # type: ignore[no-any-return]


METHODS = (
    Method(
        "adalora",
        "three factors, ranks cut during training, an orthogonal term in the loss",
        "adalora",
        apply,
        peft={"peft_type": "ADALORA"},
        options=AdaloraOptions,
        takes=("rank", "alpha", "dropout", "targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
