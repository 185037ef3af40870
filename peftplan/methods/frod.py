"""FRoD: a weight replaced by a frozen frame around a trained diagonal and a few trained numbers beside it.

Mirrors peft 0.21 tuners/frod.

The frame's inner side is one square matrix for all targets of a name, its outer side a matrix as large as each
weight. On every pass the few numbers become a sparse matrix, and that a dense square one, which the product keeps;
the frozen weight itself is not multiplied, and with `runtime_offload_base_weight` not even on the GPU.
Source: frod, torch-sparse
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.targets import matched
from peftplan.methods.wrapping import adapter, adapter_bytes, finish, freeze, put_on, refuse_packed
from peftplan.specs.formats import FP32, INT64, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class FrodOptions(Options):
    """How many numbers, and where the frozen weight is."""

    sparse_rate: Annotated[float, Field(gt=0, le=1, description="fraction of numbers beside the diagonal")] = 0.01
    projection_prng_key: Annotated[int, Field(ge=0, description="seed of where they lie; no bytes")] = 0
    save_projection: Annotated[bool, Field(description="the frame's inner side is saved with the adapter")] = True
    runtime_offload_base_weight: Annotated[
        bool, Field(description="frozen weights of targets are kept on the host, unless there is dropout")
    ] = False


class Frame(Module):
    """What all targets of a name share: the inner side, and where the numbers lie."""

    def __init__(self, size: int, rate: float, dtype: DType) -> None:
        super().__init__()
        self.size = size
        self.count = max(1, min(int(size * size * rate), size * size - size))
        self.frod_V = Parameter((size, size), dtype, role="buffer")
        self.frod_s_indices = Parameter((2, self.count), INT64, role="buffer")
        self.frod_s_size = Parameter((2,), INT64, role="buffer")


class FrodLinear(Module):
    """U (S + diagonal) V.T x, in the place of base(x)."""

    frame: Frame

    def __init__(self, base: Linear, frame: Frame, dropout: float, dtype: DType) -> None:
        super().__init__()
        self.dropout = dropout
        self.base_layer = base
        object.__setattr__(self, "frame", frame)  # no child: the model's stem owns it
        self.frod_lambda_l = adapter((frame.size,), dtype)
        self.frod_lambda_s_values = adapter((frame.count,), dtype)
        self.frod_U = Parameter((base.out_features, frame.size), base.weight.dtype, role="buffer")

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        base, frame, dtype = self.base_layer, self.frame, x.dtype
        result = plain = None
        if self.dropout and t.training:
            result = t.call("base_layer", base, x)
            plain = result if base.bias is None else t.sub(result, base.bias)
        outer, inner = t.to(self.frod_U, dtype), t.to(frame.frod_V, dtype)
        values, diagonal = t.to(self.frod_lambda_s_values, dtype), t.to(self.frod_lambda_l, dtype)
        sparse = t.coalesced(values, frame.frod_s_indices)
        dropped = t.dropout(x, self.dropout)
        rows = dropped.numel // frame.size
        flat = t.seen(dropped, (rows, frame.size))
        turned = t.linear(flat, t.view(inner, inner.shape))
        if turned.dtype is FP32:
            raise BadInput(
                "--method frod in fp32: peft multiplies a sparse matrix there, whose kernels are not modelled; "
                "take --precision bf16-mixed"
            )
        dense = t.densified(values, sparse, (frame.size, frame.size))
        beside = t.linear(turned, dense)
        del dense
        scaled = t.mul(turned, diagonal)
        total = t.add(beside, scaled)
        made = t.linear(total, outer)
        del total
        added = t.view(made, (*x.shape[:-1], base.out_features))
        if result is None:
            result = added if base.bias is None else t.add(added, base.bias)
        else:
            of_base = t.linear(dropped, t.to(base.weight, dtype))
            result = t.sub(t.add(result, added), of_base)
        return t.to(result, dtype)  # type: ignore[no-any-return]


def category(name: str) -> str:
    """By which targets share a frame: the last two parts of a name, but no layer's number."""
    parts = name.split(".")
    if len(parts) == 1 or parts[-2].isdigit():
        return parts[-1]
    if parts[-3:] == ["attention", "output", "dense"]:
        return "attention_output"
    return f"{parts[-2]}_{parts[-1]}"


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base, make the frames, and put numbers on the targets."""
    refuse_packed(method, "frod")
    freeze(model, method)
    found, options = matched(model, method.targets), method.options
    prefixes = {id(owner): prefix for owner, _, prefix in model.groups()}
    frames: dict[str, Frame] = {}
    owners = Module()
    of: dict[int, Frame] = {}
    for owner, name, module in found:
        if isinstance(module, Linear):
            key = category(f"{prefixes[id(owner)]}.{name}".lstrip("."))
            if key not in frames:
                frames[key] = Frame(module.in_features, options.sparse_rate, module.weight.dtype)
                owners.add(key, frames[key])
            of[id(module)] = frames[key]
            module.weight.on_host = options.runtime_offload_base_weight and not method.dropout
    model.stem.add("frod", owners)
    put_on(model, method, found, lambda base: FrodLinear(base, of[id(base)], method.dropout, method.adapter_dtype))
    finish(model, method)
    if options.save_projection:
        saved = sum(p.num_bytes() for frame in frames.values() for p in frame.parameters.values())
        model.adapter_checkpoint_bytes = adapter_bytes(model) + saved


METHODS = (
    Method(
        "frod",
        "a weight replaced by a frozen frame around a trained diagonal and a few trained numbers",
        "frod",
        apply,
        peft={"peft_type": "FROD"},
        options=FrodOptions,
        takes=("dropout", "targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
