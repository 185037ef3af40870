"""CPT: examples before every sequence, whose embeddings may move a little; their answers count in the loss.

Mirrors peft 0.21 tuners/cpt/model.py and peft_model.py (_cpt_forward): the model computes its own loss, and one
made of its logits takes that one's place, while all that the first keeps is still there. Masks are taken as set
everywhere, and every row of labels as one example. Source: cpt
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.prompts import put_prompt, table_of_tokens
from peftplan.methods.wrapping import finish, freeze
from peftplan.specs.formats import BOOL, FP32, INT64, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Embedding, Module, Ops
from peftplan.specs.tensors import Tensor, bytes_of


class CptOptions(Options):
    """The examples."""

    num_virtual_tokens: Annotated[int, Field(ge=1, le=10**6, description="tokens of the examples")] = 20

    def peft_fields(self) -> dict[str, Any]:
        """peft is told the tokens themselves; which they are does not matter here."""
        ones = [1] * self.num_virtual_tokens
        ids = list(range(self.num_virtual_tokens))
        return {"cpt_token_ids": ids, "cpt_mask": ones, "cpt_tokens_type_mask": ones}


class Examples(Module):
    """The examples' embeddings, frozen, and what is added to them."""

    def __init__(self, rows: int, width: int, dtype: DType) -> None:
        super().__init__()
        self.embedding = Embedding(rows, width, FP32)
        self.embedding.weight.set_trainable(False)
        self.delta_embedding = Embedding(rows, width, dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        with t.no_grad():
            still = t.call("embedding", self.embedding, x)
        delta = self.delta_embedding.weight
        rows = delta.shape[0]
        # projected: a copy, which takes the place of what was there; nothing is too long yet
        copy = t.new(delta.shape, delta.numel, delta.dtype, "clone")
        norms = t.new((rows,), rows, delta.dtype, "linalg_vector_norm", bytes_of(copy))
        long = t.new((rows,), rows, BOOL, "gt", bytes_of(norms))
        del norms, long, copy
        moved = t.embedding(x, t.hooked(delta, _masked, None))
        return t.add(still, moved)  # type: ignore[no-any-return]


def _masked(t: Any, g: Tensor, saved: Any, context: Any) -> Sequence[Tensor]:
    """A gradient times a mask of the tokens, which comes from the host."""
    rows = g.shape[0]
    mask = t.new((rows, 1), rows, BOOL, "_to_copy", 0)
    return (t.like(g, "mul", bytes_of(g, mask)),)


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put examples before every sequence."""
    if model.encoder or model.family == "t5":
        raise BadInput(f"--method cpt: peft 0.21 has it for causal language models, and {model.family} is none")
    freeze(model, method)
    tokens, width = method.options.num_virtual_tokens, table_of_tokens(model)[2].weight.shape[1]
    put_prompt(model, tokens, Examples(tokens, width, method.adapter_dtype))
    relabel = model.relabel
    assert relabel is not None

    def typed(t: Ops, labels: Tensor) -> Tensor:
        batch, length = labels.shape
        whole, numel = (batch, tokens + length), batch * (tokens + length)
        ones = t.new(labels.shape, labels.numel, FP32, "_to_copy", 0)
        given = t.like(ones, "mul")
        del ones
        out = relabel(t, labels)
        ahead = t.new((batch, tokens), batch * tokens, INT64, "_to_copy", 0)
        types = t.new(whole, numel, FP32, "cat")
        t.keep_to_loss(given, ahead, types, t.new(whole, numel, BOOL, "bitwise_and"))
        return out

    model.relabel, model.second_loss = typed, _second_loss
    finish(model, method)


def _second_loss(t: Ops, logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of what each token's cross-entropy comes to with its weight."""
    batch, length, vocab = logits.shape
    rows, shape = length - 1, (batch, length - 1)
    count = batch * rows
    logits = t.slice(logits, (batch, rows, vocab))
    logits = t.contiguous(logits) if batch > 1 else logits
    labels = t.new(shape, count, INT64, "clone") if batch > 1 else t.part(labels, shape)
    types = t.new(shape, count, FP32, "clone") if batch > 1 else None
    labelled = _kept_of(t.new(shape, count, INT64, "clone"), t, BOOL, "ne")
    losses = t.cross_entropy_each(logits, labels)
    weights = _kept_of(t.new(shape, count, BOOL, "clone"), t, FP32, "_to_copy")
    held: list[Tensor] = []
    for _ in range(batch):
        held = _examples(t, rows, held)
    chosen = t.masked(losses, labelled, count, (count,))
    chosen = t.mul(chosen, t.masked(weights, labelled, count, (count,)))
    loss = t.mean_all(chosen)
    del types, held
    return loss  # type: ignore[no-any-return]


def _kept_of(x: Tensor, t: Ops, dtype: DType, op: str) -> Tensor:
    """What is made of a tensor that ends with it."""
    return t.new(x.shape, x.numel, dtype, op, bytes_of(x))  # type: ignore[no-any-return]


def _examples(t: Ops, rows: int, before: list[Tensor]) -> list[Tensor]:
    """The examples that a row's tokens belong to, and their weights; those of the row before end meanwhile."""
    first = t.new((rows,), rows, BOOL, "gt")
    rest = t.new((rows,), rows, FP32, "remainder")
    second = t.new((rows,), rows, BOOL, "eq", bytes_of(rest))
    del rest
    both = t.new((rows,), rows, BOOL, "bitwise_and", bytes_of(first, second))
    del first, second
    places = t.new((rows, 1), rows, INT64, "nonzero", bytes_of(both))
    found = t.new((rows,), rows, FP32, "index", bytes_of(places))
    del places
    numbers = t.new((1,), 1, INT64, "unique", bytes_of(found))
    del found
    decay = t.new((rows,), rows, FP32, "ones_like", 0)
    turned = t.new((1,), 1, INT64, "flip")
    before.clear()
    alike = t.new((rows,), rows, BOOL, "eq", bytes_of(decay))
    del alike
    return [both, numbers, decay, turned]


METHODS = (
    Method(
        "cpt",
        "examples before every sequence, whose embeddings train within bounds",
        "cpt",
        apply,
        peft={"peft_type": "CPT"},
        options=CptOptions,
        takes=("adapter_dtype",),
        merging="not possible: it is no change of weights",
        merges=False,
        inference="longer sequences: each prompt position costs what a token does",
    ),
)
