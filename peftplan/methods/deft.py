"""DEFT: a part of what a layer puts out is taken away, and other content put in its place.

Mirrors peft 0.21 tuners/deft/layer.py.

The part is spanned by a trained matrix, or by the orthogonal one of its QR decomposition, made anew on every pass;
all of it is computed in fp32 on the activations. With `para` nothing is put in its place. Source: deft
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter
from peftplan.specs.formats import FP32
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor


class DeftOptions(Options):
    """How the part is made, and whether something stands in for it."""

    decomposition_method: Annotated[
        Literal["relu", "qr"], Field(description="how the projection is made of the trained matrix")
    ] = "relu"
    para: Annotated[bool, Field(description="take the part away and put nothing in its place: PaRa")] = False


class DeftLinear(Module):
    """base(x) - (base(x) @ right) @ Q.T + R(dropout(x)) @ Q.T."""

    applied_often = True  # the trained matrix makes both factors of the projection

    def __init__(self, base: Linear, method: MethodSpec) -> None:
        super().__init__()
        self.dropout, self.decomposes = method.dropout, method.options.decomposition_method == "qr"
        self.base_layer = base
        rank = min(method.rank, base.out_features)
        self.deft_P = adapter((base.out_features, rank), method.adapter_dtype)
        self.deft_R = None if method.options.para else adapter((rank, base.in_features), method.adapter_dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        base, dtype = self.base_layer, x.dtype
        out = t.call("base_layer", base, x)
        result = t.to(out, FP32)
        product = result if base.bias is None else t.add(result, t.to(base.bias, FP32))
        x = t.to(x, FP32)
        spanned, right = self._project(t)
        removed = t.linear(t.linear(product, t.view(right, right.shape[::-1])), t.seen(spanned, spanned.shape))
        result = t.sub(result, removed)
        if self.deft_R is not None:
            injection = t.mul_scalar(t.to(self.deft_R, FP32))
            dropped = t.dropout(x, self.dropout)
            inner = t.linear(dropped, injection)
            put_in = t.linear(inner, t.seen(spanned, spanned.shape))
            del inner
            result = t.add(result, put_in)
            del put_in
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def _project(self, t: Ops) -> tuple[Tensor, Tensor]:
        spanning = t.to(self.deft_P, FP32)
        if not self.decomposes:
            return spanning, t.relu(spanning)
        orthogonal = t.qr(spanning)
        return orthogonal, orthogonal


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put a projection behind every target."""
    if method.quant is not None and not method.options.para:
        raise BadInput(
            f"--method deft with --quant {method.quant.kind}: peft 0.21 makes its first values of dense weights; "
            "leave --quant out, or give --method-option para=true"
        )
    adapt(model, method, lambda base: DeftLinear(base, method))
    if method.options.decomposition_method == "qr":
        model.notes.append(
            "QR decompositions are timed by the bytes they move, and their solver's workspace is not counted: "
            "on a GPU both are more"
        )


METHODS = (
    Method(
        "deft",
        "a part of what a layer puts out is taken away, and other content put in its place",
        "deft",
        apply,
        default_rank=8,
        peft={"peft_type": "DEFT"},
        options=DeftOptions,
        takes=("rank", "alpha", "dropout", "targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
