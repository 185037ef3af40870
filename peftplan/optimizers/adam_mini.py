"""Adam-mini: a first moment, and one second moment for each head, neuron or tensor, by the tensor's name.

Source: adam-mini.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from peftplan.optimizers.row import Groups, Optimizer, OptimizerOptions, States, Weight
from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Tensor

_OWN = ("bias",)  # AdamW as it is
_HEADS = ("k_proj", "q_proj", "wq", "wk", "query", "key")
_NEURONS = (
    *("embed", "embd", "wte", "lm_head", "output", "final_layer", "v_proj", "wv", "value"),
    *("o_proj", "wo", "attn.proj", "feed_forward", "linear", "mlp"),
)


class AdamMiniOptions(OptimizerOptions):
    """The defaults are those of the model's config."""

    dim: Annotated[int, Field(ge=1, le=10**7, description="width of the model; default: its config's")]
    n_heads: Annotated[int, Field(ge=1, le=10**6, description="attention heads; default: its config's")]


def _of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    names = {"dim": ("hidden_size", "n_embd", "d_model"), "n_heads": ("num_attention_heads", "n_head", "num_heads")}
    found = {}
    for option, keys in names.items():
        for key in keys:
            if isinstance(config.get(key), int):
                found[option] = config[key]
                break
    return found


def _kind(weight: Weight) -> str:
    name = weight.name.lower()
    for kind, words in (("own", _OWN), ("heads", _HEADS), ("neurons", _NEURONS)):
        if any(word in name for word in words):
            return kind
    return "tensor"


def _head_numel(options: AdamMiniOptions) -> int:
    return options.dim * options.dim // options.n_heads


def _parts(weight: Weight, kind: str, options: AdamMiniOptions) -> int:
    """How many second moments a tensor has."""
    if kind == "heads":
        return weight.numel // _head_numel(options)
    return {"own": weight.numel, "neurons": weight.shape[0]}.get(kind, 1)


def _states(weight: Weight, options: AdamMiniOptions) -> States:
    kind = _kind(weight)
    second = _parts(weight, kind, options) * weight.dtype.itemsize
    name = "second moment" if kind == "own" else "second moments, one for each part"
    return [("first moment", weight.num_bytes), (name, second)]


def _step(t: Ops, groups: Groups, options: AdamMiniOptions, renews: bool) -> None:
    """A variable stays until the next tensor takes its place."""
    mean: list[Tensor] = []
    root: list[Tensor] = []
    size_of_step: list[Tensor] = []
    update: list[Tensor] = []
    for group in groups:
        for row in group:
            kind, dtype, size = _kind(row), row.dtype, row.num_bytes
            if kind == "own":
                for read in (size, 2 * size, size, 2 * size):
                    t.write("lerp_", dtype, read, size)
                root = [_root(t, row.shape, row.numel, row)]
                t.write("addcdiv_", dtype, 3 * size, size)
                continue
            parts = _parts(row, kind, options)
            shape = () if kind == "tensor" else (parts, 1)
            squared = t.new(row.shape, row.numel, dtype, "squared gradient", size)
            mean = [t.new(shape, parts, dtype, "mean", size)]
            del squared
            if kind == "tensor":
                mean = [t.new(shape, parts, dtype, "div")]
            few = parts * dtype.itemsize
            for op in ("mul_", "add_"):
                t.write(op, dtype, few, few)
            t.write("lerp_", dtype, 2 * size, size)
            root = [_root(t, shape, parts, row)]
            size_of_step = [_over(t, shape, parts, row)]
            update = [t.new(row.shape, row.numel, dtype, "update", size)]
            t.write("mul_", dtype, size, size)
            t.new(row.shape, row.numel, dtype, "update, negated", size)
            t.write("add_", dtype, 2 * size, size)
    del mean, root, size_of_step, update


def _root(t: Ops, shape: tuple[int, ...], numel: int, row: Weight) -> Tensor:
    made = t.new(shape, numel, row.dtype, "sqrt")
    return t.new(shape, numel, row.dtype, "div")  # type: ignore[no-any-return]


def _over(t: Ops, shape: tuple[int, ...], numel: int, row: Weight) -> Tensor:
    made = t.new(shape, numel, row.dtype, "reciprocal")
    return t.new(shape, numel, row.dtype, "mul")  # type: ignore[no-any-return]


def _refuses(weights: Sequence[Weight], options: AdamMiniOptions) -> str:
    each = _head_numel(options)
    for weight in weights:
        kind = _kind(weight)
        if kind == "heads" and weight.numel % each:
            return (
                f"it cuts queries and keys into heads of dim² / n_heads = {each:,} values, and {weight.name} has "
                f"{weight.numel:,}; take --optimizer adamw, or other --targets"
            )
        if kind == "neurons" and len(weight.shape) != 2:
            return (
                f"it takes {weight.name} for a matrix, and it has the shape {list(weight.shape)}; take --optimizer "
                "adamw"
            )
    return ""


ADAM_MINI = Optimizer(
    "adam-mini",
    "Adam-mini, looped: a first moment, and one second moment for each head, neuron or norm",
    "adam-mini",
    _states,
    options=AdamMiniOptions,
    step=_step,
    group=lambda weight, options: 0,  # a group for each tensor, in the model's order
    of_config=_of_config,
    refuses=_refuses,
)
