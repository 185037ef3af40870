"""Prefix tuning (P-tuning v2): trained keys and values before those of every layer.

Mirrors peft 0.21 peft_model.py (get_prompt: one table of all layers, cut into keys and values that a cache
holds) and tuners/prefix_tuning/model.py. Each layer joins its own with what it computes, which the cache keeps
until the loss is there; queries see more keys than there are of them, so that attention takes a mask. A cartridge
is a cache whose keys and values train themselves, but for the first (tuners/cartridge/model.py).
Source: prefix-tuning, cartridge
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method
from peftplan.methods.prompts import PromptEmbedding, PromptOptions
from peftplan.methods.wrapping import adapter, finish, freeze
from peftplan.specs.formats import FP32, INT64, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor

# Families whose models return the cache although they are told not to use one.
RETURNS_CACHE = ("llama", "phi3")
# Families whose attention extends keys and values on the tape.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gpt2")


class PrefixOptions(PromptOptions):
    """How the keys and values are made."""

    prefix_projection: Annotated[bool, Field(description="by a small network from narrower rows")] = False
    encoder_hidden_size: Annotated[
        int | None, Field(ge=1, le=10**6, description="width of that network; default that of the keys")
    ] = None


class CartridgeOptions(PromptOptions):
    """Which of them stay."""

    num_frozen_tokens: Annotated[int, Field(ge=0, le=10**6, description="positions that stay: the first")] = 1


class Prefix(PromptEmbedding):
    """peft's PrefixEncoder: rows of all keys and values, or narrower ones and a network behind them."""

    def __init__(self, options: PrefixOptions, width: int, layers: int, dtype: DType) -> None:
        self.projects = options.prefix_projection
        whole = 2 * layers * width
        super().__init__(options.num_virtual_tokens, width if self.projects else whole, dtype)
        if self.projects:
            hidden = options.encoder_hidden_size or width
            self.first = Linear(width, hidden, True, dtype)
            self.second = Linear(hidden, whole, True, dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        x = t.call("embedding", self.embedding, x)
        if not self.projects:
            return x
        x = t.tanh(t.call("transform.0", self.first, x))
        return t.call("transform.2", self.second, x)  # type: ignore[no-any-return]


class Cartridge(Module):
    """peft's CartridgeEncoder: all keys and values themselves, of which the first stay."""

    def __init__(self, options: CartridgeOptions, width: int, layers: int, dtype: DType) -> None:
        super().__init__()
        whole, kept = 2 * layers * width, options.num_frozen_tokens
        self.frozen_embedding = adapter((kept, whole), FP32, trainable=False) if kept else None
        self.trainable_embedding = adapter((options.num_virtual_tokens - kept, whole), dtype)
        if kept and dtype is FP32:  # a part of the joined rows' gradient, and kept as it is
            self.trainable_embedding.gradient_numel = options.num_virtual_tokens * whole

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        rows: Tensor = self.trainable_embedding
        if self.frozen_embedding is not None:
            rows = t.cat((self.frozen_embedding, rows), (x.shape[1], rows.shape[1]))
        return t.expand(rows, (*x.shape, rows.shape[1]))  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and hand every layer trained keys and values."""
    _put_before(model, method, "prefix-tuning", Prefix)


def apply_p_tuning_v2(model: ModelSpec, method: MethodSpec) -> None:
    """The same under another name: peft has both as prefix tuning."""
    _put_before(model, method, "p-tuning-v2", Prefix)


def apply_cartridge(model: ModelSpec, method: MethodSpec) -> None:
    """The same, with nothing but the keys and values."""
    options = method.options
    if options.num_frozen_tokens >= options.num_virtual_tokens:
        raise BadInput(
            f"--method-option num_frozen_tokens={options.num_frozen_tokens} leaves none of "
            f"{options.num_virtual_tokens} positions to train; give fewer"
        )
    _put_before(model, method, "cartridge", Cartridge)


def _put_before(model: ModelSpec, method: MethodSpec, name: str, encoder: type[Prefix | Cartridge]) -> None:
    if model.family not in FAMILIES:
        raise BadInput(
            f"--method {name}: the closed form puts prefixes before {', '.join(FAMILIES)} only, and this is "
            f"{model.family}; take --engine trace"
        )
    freeze(model, method)
    heads, dim = _heads(model)
    prefix = encoder(method.options, heads * dim, model.num_layers, method.adapter_dtype)
    for _, parameter in prefix.named_parameters():
        parameter.role = "adapter"
    model.stem.add("prompt_encoder", prefix)
    num_tokens, layers, enter = method.options.num_virtual_tokens, model.num_layers, model.enter

    def entered(t: Ops, ids: Tensor) -> tuple[Tensor, Any]:
        batch, length = ids.shape
        ahead = t.new((batch, num_tokens), batch * num_tokens, FP32, "_to_copy")
        mask = t.new((batch, num_tokens + length), batch * (num_tokens + length), FP32, "cat")
        t.keep_to_loss(ahead, mask)
        indices = t.new((batch, num_tokens), batch * num_tokens, INT64, "_to_copy")
        rows = t.to(t.call("prompt_encoder", prefix, indices), method.base_dtype)
        parts = _parts(t, rows, (batch, heads, num_tokens, dim), layers)
        t.put_before(parts, num_tokens, model.family in RETURNS_CACHE)
        del parts
        del rows, indices, ahead, mask
        return enter(t, ids)

    model.enter = entered
    model.plays_each = model.virtual_tokens = True
    model.not_checkpointed = (
        f"--method {name} does not work with gradient checkpointing, which drops the cache that its keys and "
        "values stand in; add --no-checkpointing"
    )
    model.adapter_checkpoint_bytes = FP32.itemsize * num_tokens * 2 * layers * heads * dim
    finish(model, method)


def _parts(t: Ops, rows: Tensor, shape: tuple[int, ...], layers: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer, which the cache copies."""
    found = []
    for both in t.split(t.permuted(rows, (2 * layers, *shape)), [(2, *shape)] * layers):
        key, value = t.split(both, [shape, shape])
        found.append((t.cat((key,), shape), t.cat((value,), shape)))
    return found


def _heads(model: ModelSpec) -> tuple[int, int]:
    """How many heads of keys and values there are, and how wide each is."""
    for _, module in model.runs[0].block.walk():
        sizes = module.__dict__.get("s")
        if sizes is not None and hasattr(sizes, "heads"):
            if hasattr(sizes, "kv_heads"):
                return sizes.kv_heads, sizes.dim
            return sizes.heads, sizes.hidden // sizes.heads
    raise BadInput(f"--method prefix-tuning: {model.family} has no attention that is known; take --engine trace")


_PREFIX = Method(
    "prefix-tuning",
    "trained keys and values before those of every layer",
    "prefix-tuning",
    apply,
    peft={"peft_type": "PREFIX_TUNING"},
    options=PrefixOptions,
    takes=("adapter_dtype",),
    merging="not possible: it is no change of weights",
    merges=False,
    inference="a longer cache of keys and values",
)
METHODS = (
    _PREFIX,
    replace(
        _PREFIX,
        name="p-tuning-v2",
        summary="prefix tuning, as P-tuning v2 names it: prompts at every layer",
        source="p-tuning-v2",
        apply=apply_p_tuning_v2,
    ),
    Method(
        "cartridge",
        "a cache of keys and values before those of every layer, most of it trained",
        "cartridge",
        apply_cartridge,
        peft={"peft_type": "CARTRIDGE"},
        options=CartridgeOptions,
        takes=("adapter_dtype",),
        merging="not possible: it is no change of weights",
        merges=False,
        inference="a longer cache of keys and values",
    ),
)
