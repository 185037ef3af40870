"""Prompt tuning and P-tuning: trained positions before every sequence.

They count in every activation, in attention and in the loss. Mirrors peft 0.21 peft_model.py
(PeftModelForCausalLM.forward, which holds masks, labels and embeddings of the longer sequence until the loss
is there), tuners/prompt_tuning/model.py, tuners/p_tuning/model.py and tuners/multitask_prompt_tuning/model.py.

Source: prompt-tuning, p-tuning, multitask-prompt-tuning
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapter_bytes, finish, freeze
from peftplan.specs.formats import FP32, INT64, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Embedding, Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class PromptOptions(Options):
    """How many positions are trained."""

    num_virtual_tokens: Annotated[
        int, Field(ge=1, le=10**6, description="trained positions before every sequence")
    ] = 20


class PTuningOptions(PromptOptions):
    """The encoder behind them."""

    encoder_hidden_size: Annotated[
        int | None, Field(ge=1, le=10**6, description="width of the prompt encoder; default that of the model")
    ] = None
    encoder_reparameterization_type: Annotated[
        Literal["MLP"],
        Field(description="the prompt encoder; the LSTM form, whose buffers are cuDNN's, is not modelled"),
    ] = "MLP"


class MultitaskOptions(PromptOptions):
    """What each task has of its own."""

    num_tasks: Annotated[int, Field(ge=1, le=10**6, description="tasks, each with factors of its own")] = 1
    num_ranks: Annotated[int, Field(ge=1, le=10**4, description="rank of what a task makes of the prompt")] = 1


class PromptEmbedding(Module):
    """A table of trained positions."""

    def __init__(self, rows: int, width: int, dtype: DType) -> None:
        super().__init__()
        self.embedding = Embedding(rows, width, dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        return t.call("embedding", self.embedding, x)  # type: ignore[no-any-return]


class PromptEncoder(PromptEmbedding):
    """A table of trained positions and a small network behind it."""

    def __init__(self, rows: int, width: int, hidden: int, dtype: DType) -> None:
        super().__init__(rows, width, dtype)
        self.first = Linear(width, hidden, True, dtype)
        self.second = Linear(hidden, hidden, True, dtype)
        self.third = Linear(hidden, width, True, dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        x = t.call("embedding", self.embedding, x)
        x = t.relu(t.call("mlp_head.0", self.first, x))
        x = t.relu(t.call("mlp_head.2", self.second, x))
        return t.call("mlp_head.4", self.third, x)  # type: ignore[no-any-return]


class MultitaskEmbedding(PromptEmbedding):
    """A table of trained positions, times what two factors of a sequence's task make of them."""

    def __init__(self, options: MultitaskOptions, width: int, dtype: DType) -> None:
        super().__init__(options.num_virtual_tokens, width, dtype)
        tasks, ranks = options.num_tasks, options.num_ranks
        self.prefix_task_cols = Parameter((tasks, options.num_virtual_tokens, ranks), dtype)
        self.prefix_task_rows = Parameter((tasks, ranks, width), dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        batch = x.shape[0]
        tasks = Tensor((batch,), batch, INT64, None, None)
        words = t.call("embedding", self.embedding, x)
        columns = t.index_select(self.prefix_task_cols, tasks)
        rows = t.index_select(self.prefix_task_rows, tasks)
        of_tasks = t.matmul(columns, rows, words.shape)
        return t.mul_in_place(words, of_tasks)  # type: ignore[no-any-return]


class Prompted(Module):
    """Stands in the place of the token embeddings: rows for the batch's ids, behind the prompt's."""

    encoder: Module

    def __init__(self, base: Embedding, encoder: Module, num_tokens: int) -> None:
        super().__init__()
        self.word_embeddings = base
        self.num_tokens = num_tokens
        object.__setattr__(self, "encoder", encoder)  # no child: it stands beside the model
        self.ids: list[Tensor] = []  # of the batch, while the model is entered

    @property
    def weight(self) -> Any:
        """The frozen table."""
        return self.word_embeddings.weight

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        words = t.call("word_embeddings", self.word_embeddings, self.ids[-1])
        batch, length, width = words.shape
        indices = t.new((batch, self.num_tokens), batch * self.num_tokens, INT64, "_to_copy")
        if isinstance(self.encoder, MultitaskEmbedding):
            prompts = t.call("prompt_encoder", self.encoder, indices)
        else:
            indices = t.part(indices, (1, self.num_tokens))  # one row is looked up, and repeated
            prompts = t.repeated(t.call("prompt_encoder", self.encoder, indices), (batch, self.num_tokens, width))
        prompts = t.to(prompts, words.dtype)
        joined = t.cat((prompts, words), (batch, self.num_tokens + length, width))
        t.keep_to_loss(prompts, joined)
        return joined  # type: ignore[no-any-return]


def put_prompt(model: ModelSpec, num_tokens: int, encoder: Module) -> None:
    """Put the prompt before the model; `encoder` makes its rows."""
    for _, parameter in encoder.named_parameters():
        parameter.role = "adapter"
    owner, path, words = table_of_tokens(model)
    layer = Prompted(words, encoder, num_tokens)
    owner.replace(path, layer)
    model.stem.add("prompt_encoder", encoder)
    enter = model.enter

    def longer(t: Ops, ids: Tensor) -> tuple[Tensor, Any]:
        batch, length = ids.shape
        layer.ids.append(ids)
        try:
            seen = Tensor((batch, num_tokens + length), batch * (num_tokens + length), INT64, None, None)
            return enter(t, seen)
        finally:
            layer.ids.pop()

    def relabel(t: Ops, labels: Tensor) -> Tensor:
        batch, length = labels.shape
        shape, numel = (batch, num_tokens + length), batch * (num_tokens + length)
        ahead = t.new((batch, num_tokens), batch * num_tokens, FP32, "_to_copy")
        mask = t.new(shape, numel, FP32, "cat")
        unlabelled = t.new((batch, num_tokens), batch * num_tokens, INT64, "_to_copy")
        out = t.new(shape, numel, INT64, "cat")
        t.keep_to_loss(ahead, mask, unlabelled, out)
        return out  # type: ignore[no-any-return]

    model.enter, model.relabel = longer, relabel
    # the rows that come out of the encoder are saved, not the encoder
    model.adapter_checkpoint_bytes = FP32.itemsize * num_tokens * words.weight.shape[1]


def table_of_tokens(model: ModelSpec) -> tuple[Module, str, Embedding]:
    """The first table with a row for each token: (owner, path below it, module)."""
    for path, module in model.stem.walk():
        if isinstance(module, Embedding) and module.weight.shape[0] == model.vocab_size:
            return model.stem, path, module
    raise BadInput(f"{model.family} has no table of token embeddings; take --method lora")


def _decoder_only(model: ModelSpec, name: str) -> None:
    if model.encoder or model.family == "t5":
        raise BadInput(
            f"--method {name}: the closed form puts prompts before causal language models, and "
            f"{model.family} is none; "
            "take --engine trace"
        )


def apply_prompt_tuning(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put a table of trained positions before every sequence."""
    _decoder_only(model, "prompt-tuning")
    freeze(model, method)
    width = table_of_tokens(model)[2].weight.shape[1]
    put_prompt(
        model,
        method.options.num_virtual_tokens,
        PromptEmbedding(method.options.num_virtual_tokens, width, method.adapter_dtype),
    )
    finish(model, method)


def apply_p_tuning(model: ModelSpec, method: MethodSpec) -> None:
    """The same, with a small network behind the table."""
    _decoder_only(model, "p-tuning")
    freeze(model, method)
    width = table_of_tokens(model)[2].weight.shape[1]
    hidden = method.options.encoder_hidden_size or width
    put_prompt(
        model,
        method.options.num_virtual_tokens,
        PromptEncoder(method.options.num_virtual_tokens, width, hidden, method.adapter_dtype),
    )
    finish(model, method)


def apply_multitask(model: ModelSpec, method: MethodSpec) -> None:
    """The same, with factors of each sequence's task, which the batch names."""
    _decoder_only(model, "multitask-prompt-tuning")
    freeze(model, method)
    width = table_of_tokens(model)[2].weight.shape[1]
    put_prompt(
        model, method.options.num_virtual_tokens, MultitaskEmbedding(method.options, width, method.adapter_dtype)
    )
    finish(model, method)
    model.names_tasks = True
    model.adapter_checkpoint_bytes = adapter_bytes(model)


_NO_MERGE = "not possible: it is no change of weights"
_LONGER = "longer sequences: each prompt position costs what a token does"
METHODS = (
    Method(
        "prompt-tuning",
        "trained positions before every sequence",
        "prompt-tuning",
        apply_prompt_tuning,
        peft={"peft_type": "PROMPT_TUNING"},
        options=PromptOptions,
        takes=("adapter_dtype",),
        merging=_NO_MERGE,
        merges=False,
        inference=_LONGER,
    ),
    Method(
        "p-tuning",
        "trained positions before every sequence, behind a small network",
        "p-tuning",
        apply_p_tuning,
        peft={"peft_type": "P_TUNING"},
        options=PTuningOptions,
        takes=("adapter_dtype",),
        merging=_NO_MERGE,
        merges=False,
        inference=_LONGER,
    ),
    Method(
        "multitask-prompt-tuning",
        "trained positions before every sequence, times factors of its task",
        "multitask-prompt-tuning",
        apply_multitask,
        peft={"peft_type": "MULTITASK_PROMPT_TUNING"},
        options=MultitaskOptions,
        takes=("adapter_dtype",),
        merging=_NO_MERGE,
        merges=False,
        inference=_LONGER,
    ),
)
