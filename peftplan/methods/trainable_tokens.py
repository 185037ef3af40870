"""Trainable tokens: rows of the token table that train, apart from it.

Mirrors peft 0.21 tuners/trainable_tokens/layer.py.

The whole table is copied on every pass, with the trained rows put into the copy, and so is its gradient. A
tied output head takes the same rows.
Source: peft-trainable-tokens
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from peftplan.methods.method import Method, Options
from peftplan.methods.prompts import table_of_tokens
from peftplan.methods.wrapping import adapter, finish, freeze
from peftplan.specs.formats import FP32, INT64, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Embedding, Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class TokensOptions(Options):
    """How many tokens train."""

    num_tokens: Annotated[int, Field(ge=1, le=10**6, description="tokens whose rows train")] = 16

    def peft_fields(self) -> dict[str, Any]:
        """peft is told which tokens; which ones changes no bytes."""
        return {"token_indices": list(range(self.num_tokens))}


class Rows(Module):
    """The trained rows, and what they were."""

    def __init__(self, count: int, width: int, dtype: DType, buffers: DType) -> None:
        super().__init__()
        self.trainable_tokens_delta = adapter((count, width), dtype)
        self.trainable_tokens_original = Parameter((count, width), buffers, role="buffer")

    def put_into(self, t: Ops, weight: Tensor) -> Tensor:
        """A copy of the table with the rows in it."""
        return self._put(t, weight)[0]

    def merge_into(self, t: Ops, table: Parameter) -> None:
        """Such a copy in the table's place."""
        merged = self._put(t, table)
        if t.safe:
            t.check(merged[0])
        t.place(table, merged[0])

    def _put(self, t: Ops, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The copy, the index and the rows that were put there."""
        delta = self.trainable_tokens_delta
        index = t.new((delta.shape[0],), delta.shape[0], INT64, "_to_copy")
        rows = t.to(delta, weight.dtype)
        return t.index_copy(weight, index, rows), index, rows


class TokensEmbedding(Module):
    """The table, looked up in its copy."""

    def __init__(self, base: Embedding, rows: Rows) -> None:
        super().__init__()
        self.base_layer = base
        self.rows = rows

    @property
    def weight(self) -> Parameter:
        """The frozen table."""
        return self.base_layer.weight

    def merge(self, t: Ops) -> None:
        """A copy of the table, with the rows in it, takes its place."""
        self.rows.merge_into(t, self.base_layer.weight)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        out = t.embedding(x, self.rows.put_into(t, self.base_layer.weight))
        scale = self.base_layer.parameters.get("embed_scale")
        return out if scale is None else t.mul(out, t.to(scale, out.dtype))  # type: ignore[no-any-return]


class TokensHead(Module):
    """A tied output head, which multiplies by a copy of its own."""

    def __init__(self, base: Linear, rows: Rows) -> None:
        super().__init__()
        self.base_layer = base
        self.rows = rows

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        table = self.rows.put_into(t, self.base_layer.weight)
        return t.linear(x, table)  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """As the table's, whose weight it is."""
        self.rows.merge_into(t, self.base_layer.weight)


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and train rows of its table of tokens."""
    freeze(model, method)
    owner, path, table = table_of_tokens(model)
    buffers = FP32 if method.adapter_dtype is FP32 else table.weight.dtype
    rows = Rows(method.options.num_tokens, table.weight.shape[1], method.adapter_dtype, buffers)
    owner.replace(path, TokensEmbedding(table, rows))
    head = model.head
    if isinstance(head, Linear) and head.weight is table.weight:
        model.stem.replace(model.head_path, TokensHead(head, rows))
    finish(model, method)


METHODS = (
    Method(
        "trainable-tokens",
        "rows of the token table train, for new or changed tokens",
        "peft-trainable-tokens",
        apply,
        peft={"peft_type": "TRAINABLE_TOKENS"},
        options=TokensOptions,
        takes=("adapter_dtype",),
        merging="into the table",
        inference="none once merged; a copy of the table until then",
    ),
)
