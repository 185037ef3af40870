"""LLaMA-Adapter: trained positions that attention of the upper blocks sees through a gate.

Mirrors peft 0.21 tuners/adaption_prompt/layer.py, utils.py: queries are computed a second time, and values of the
tokens too, which nothing reads. Source: adaption-prompt
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.targets import split_runs
from peftplan.methods.wrapping import adapter, finish, freeze
from peftplan.specs.formats import FP32, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Module, Ops
from peftplan.specs.tensors import Tensor

FAMILIES = ("llama", "mistral")


class AdaptionOptions(Options):
    """The prompt and where it stands."""

    adapter_len: Annotated[int, Field(ge=1, le=10**6, description="trained positions of a block")] = 10
    adapter_layers: Annotated[
        int | None, Field(ge=1, le=10**6, description="blocks that have them, the last ones; default up to 30")
    ] = None


class AdaptedAttention(Module):
    """Attention, and beside it attention to the prompt."""

    applied_often = True  # keys and values are both made of the prompt

    def __init__(self, base: Any, length: int, width: int, dtype: DType) -> None:
        super().__init__()
        self.model = base
        self.length = length
        self.adaption_prompt = adapter((1, length, width), dtype)
        self.adaption_gate = adapter((1,), dtype)

    def forward(self, t: Ops, x: Tensor, given: Any) -> Tensor:  # type: ignore[override]
        base = self.model
        s = base.s
        output = t.call("model", base, x, given)
        batch, length, _ = x.shape
        key = t.call("k_proj", base.k_proj, self.adaption_prompt)
        value = t.call("v_proj", base.v_proj, self.adaption_prompt)
        few = (batch, s.kv_heads, self.length, s.dim)
        keys = t.repeated(key, few)
        values = t.repeated(value, few)
        keys = self._spread(t, keys)
        values = self._spread(t, values)
        queries = self._queries(t, x, given)
        dtype = queries.dtype
        scores = t.matmul(queries, t.to(keys, dtype), (batch, s.heads, length, self.length))
        scores = t.mul_scalar(scores, "div")
        scores = t.mul(self.adaption_gate, t.to(t.softmax(scores, FP32), dtype))
        out = t.matmul(scores, values, queries.shape)
        out = t.view(t.contiguous(out), (batch, length, s.heads * s.dim))
        out = t.call("o_proj", base.o_proj, out)
        output = t.add(output, out)
        return t.to(output, dtype)  # type: ignore[no-any-return]

    def _spread(self, t: Ops, x: Tensor) -> Tensor:
        shape = (x.shape[0], self.model.s.heads, *x.shape[2:])
        return t.expand_copy(x, shape)  # type: ignore[no-any-return]

    def _queries(self, t: Ops, x: Tensor, given: Any) -> Tensor:
        s, base = self.model.s, self.model
        shape = (x.shape[0], s.heads, x.shape[1], s.dim)
        queries = t.view(t.call("q_proj", base.q_proj, x), shape)
        with t.apart() as unread:
            values = t.call("v_proj", base.v_proj, x)
        out = _rotated(t, queries, given.table)
        del values, unread
        return out


def _rotated(t: Ops, x: Tensor, table: Any) -> Tensor:
    """peft's own rotation of queries: x * cos + (-x2, x1) * sin."""
    cos, sin = (t.view(one, (1, 1, *one.shape[1:])) for one in table[:2])
    half = (*x.shape[:-1], x.shape[-1] // 2)
    first, second = t.slice(x, half), t.slice(x, half)
    return t.add(t.mul(x, cos), t.mul(_turned(t, first, second, x.shape), sin))  # type: ignore[no-any-return]


def _turned(t: Ops, first: Tensor, second: Tensor, shape: tuple[int, ...]) -> Tensor:
    return t.cat((t.neg(second), first), shape)  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and let attention of the upper blocks see a prompt."""
    if model.family not in FAMILIES:
        raise BadInput(
            f"--method adaption-prompt: the closed form puts it on {', '.join(FAMILIES)} only, and this is "
            f"{model.family}; take --engine trace"
        )
    freeze(model, method)
    options: AdaptionOptions = method.options
    layers = model.num_layers
    first = layers - (min(30, layers) if options.adapter_layers is None else options.adapter_layers)
    if first < 0:
        raise BadInput(f"--method-option adapter_layers={options.adapter_layers}: the model has {layers} blocks")
    split_runs(model, lambda name, _: name.endswith(".self_attn") and int(name.split(".")[-2]) >= first, first > 0)
    for run in model.runs:
        if run.first_index >= first and not isinstance(run.block.children["self_attn"], AdaptedAttention):
            base: Any = run.block.children["self_attn"]
            dtype = _dtype(method, base.q_proj.weight.dtype)
            run.block.replace("self_attn", AdaptedAttention(base, options.adapter_len, base.s.hidden, dtype))
    finish(model, method)


def _dtype(method: MethodSpec, base: DType) -> DType:
    """The prompt's type: the base's, which peft does not widen, or the one that adapters are told to have."""
    if method.adapter_dtype is not FP32:
        return method.adapter_dtype
    return FP32 if method.quant is not None else base


METHODS = (
    Method(
        "adaption-prompt",
        "trained positions that attention of the upper blocks sees through a gate (LLaMA-Adapter)",
        "adaption-prompt",
        apply,
        peft={"peft_type": "ADAPTION_PROMPT"},
        options=AdaptionOptions,
        takes=("adapter_dtype",),
        merging="not possible: it is no change of weights",
        merges=False,
        inference="a second, short attention in every adapted block",
    ),
)
