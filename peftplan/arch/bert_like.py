"""BERT and RoBERTa with their masked-language-model head: post-norm encoder blocks, dropout throughout.

Source: transformers 5.23 modeling_bert.py, modeling_roberta.py and their configuration files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from peftplan.arch.config import Config, activation
from peftplan.arch.masks import both_ways_mask
from peftplan.arch.plain_attention import plain_attention
from peftplan.arch.rotary import cache_positions
from peftplan.specs.formats import BOOL, INT32, INT64
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, LayerNorm, Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor

Given = tuple[Tensor | None, Tensor | None]  # the mask, positions in the sequence


@dataclass(frozen=True, slots=True)
class Row:
    """What sets a family apart: its names, and whether padding shifts its positions."""

    body: str  # the attribute that holds the encoder
    head: str
    offset_positions: bool
    padding_id: int
    pooled: bool  # a classifier stands behind the model's own pooler


ROWS = {
    "bert": Row("bert", "cls.predictions", False, 0, True),
    "roberta": Row("roberta", "lm_head", True, 1, False),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """An encoder's sizes and dropout probabilities."""

    hidden: int
    heads: int
    inner: int
    activation: str
    dropout: float
    attention_dropout: float


class Embeddings(Module):
    """Words, token types and positions added, normalised, dropped out; two buffers of ids."""

    def __init__(self, c: Config, s: Shape, vocab: int, positions: int, offset: bool) -> None:
        super().__init__()
        self.s, self.offset = s, offset
        self.word_embeddings = Embedding(vocab, s.hidden)
        self.position_embeddings = Embedding(positions, s.hidden)
        self.token_type_embeddings = Embedding(c.size("type_vocab_size", 2), s.hidden)
        self.add("LayerNorm", LayerNorm(s.hidden))
        self.position_ids = Parameter((1, positions), INT64, role="buffer")
        self.token_type_ids = Parameter((1, positions), INT64, role="buffer")

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        batch, length = x.shape
        if self.offset:
            places = offset_positions(t, x)
        else:
            places = t.part(self.position_ids, (1, length))
        types = t.new(places.shape, places.numel, INT64, "gather")
        words = t.call("word_embeddings", self.word_embeddings, x)
        of_type = t.call("token_type_embeddings", self.token_type_embeddings, t.part(types, (batch, length)))
        x = t.add(words, of_type)
        of_place = t.call("position_embeddings", self.position_embeddings, places)
        x = t.add(x, of_place)
        x = t.call("LayerNorm", self.children["LayerNorm"], x)
        return t.dropout(x, self.s.dropout)  # type: ignore[no-any-return]


def offset_positions(t: Ops, ids: Tensor) -> Tensor:
    """Positions counted over the tokens that are no padding, starting behind the padding's own id."""
    shape, numel = ids.shape, ids.numel
    differs = t.new(shape, numel, BOOL, "ne")
    mask = t.new(shape, numel, INT32, "_to_copy")
    del differs
    running = t.new(shape, numel, INT64, "cumsum")
    narrow = t.new(shape, numel, INT32, "_to_copy")
    del running
    shifted = t.new(shape, numel, INT32, "add")
    del narrow
    counted = t.new(shape, numel, INT32, "mul")
    del shifted
    wide = t.new(shape, numel, INT64, "_to_copy")
    del counted
    places: Tensor = t.new(shape, numel, INT64, "add")
    del wide, mask
    return places


class SelfAttention(Module):
    """Queries, keys and values of equal width, attended in both directions."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.query = Linear(s.hidden, s.hidden, True)
        self.key = Linear(s.hidden, s.hidden, True)
        self.value = Linear(s.hidden, s.hidden, True)

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        s, mask = self.s, given[0]
        batch, length, width = x.shape
        heads = (batch, s.heads, length, width // s.heads)
        q = t.view(t.call("query", self.query, x), heads)
        k = t.view(t.call("key", self.key, x), heads)
        v = t.view(t.call("value", self.value, x), heads)
        if t.attention == "eager":
            out = plain_attention(t, q, k, v, () if mask is None else (mask,), s.attention_dropout)
        else:
            out = t.attend(q, k, v, mask, s.attention_dropout, causal=False)
        return t.view(out, x.shape)  # type: ignore[no-any-return]


class Output(Module):
    """A linear and dropout, added to what came before and normalised."""

    def __init__(self, s: Shape, width: int) -> None:
        super().__init__()
        self.s = s
        self.dense = Linear(width, s.hidden, True)
        self.add("LayerNorm", LayerNorm(s.hidden))

    def forward(self, t: Ops, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        x = t.call("dense", self.dense, x)
        x = t.dropout(x, self.s.dropout)
        return t.call("LayerNorm", self.children["LayerNorm"], t.add(x, residual))  # type: ignore[no-any-return]


class Attention(Module):
    """Self-attention (`self`) and its output."""

    def __init__(self, inner: Module, s: Shape) -> None:
        super().__init__()
        self.add("self", inner)
        self.output = Output(s, s.hidden)

    def forward(self, t: Ops, x: Tensor, given: object) -> Tensor:  # type: ignore[override]
        attended = t.call("self", self.children["self"], x, given)
        attended = t.call("output", self.output, attended, x)
        return attended  # type: ignore[no-any-return]


class Intermediate(Module):
    """The widening linear and its activation."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.activation = s.activation
        self.dense = Linear(s.hidden, s.inner, True)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        x = t.call("dense", self.dense, x)
        return t.activation(x, self.activation)  # type: ignore[no-any-return]


class Block(Module):
    """Attention, then the feed-forward pair, each followed by its norm."""

    positional = (0,)

    def __init__(self, attention: Module, s: Shape) -> None:
        super().__init__()
        self.attention = Attention(attention, s)
        self.intermediate = Intermediate(s)
        self.output = Output(s, s.inner)

    def forward(self, t: Ops, x: Tensor, given: object) -> Tensor:  # type: ignore[override]
        attended = t.call("attention", self.attention, x, given)
        widened = t.call("intermediate", self.intermediate, attended)
        return t.call("output", self.output, widened, attended)  # type: ignore[no-any-return]


class Transform(Module):
    """What the head does before its decoder: a linear, an activation and a norm."""

    def __init__(self, hidden: int, activation: str, norm: str, width: int | None = None) -> None:
        super().__init__()
        self.activation, self.norm = activation, norm
        self.dense = Linear(hidden, width or hidden, True)
        self.add(norm, LayerNorm(width or hidden))

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        x = t.call("dense", self.dense, x)
        x = t.activation(x, self.activation)
        return t.call(self.norm, self.children[self.norm], x)  # type: ignore[no-any-return]


def shape(c: Config, hidden: int = 768, heads: int = 12, inner: int = 3072) -> Shape:
    """The sizes; what a config leaves out is BERT's unless said otherwise."""
    hidden, heads = c.size("hidden_size", hidden), c.count("num_attention_heads", heads)
    c.divides("num_attention_heads", heads, "hidden_size", hidden)
    return Shape(
        hidden,
        heads,
        c.size("intermediate_size", inner),
        activation(c, "hidden_act", "gelu"),
        c.probability("hidden_dropout_prob", 0.1),
        c.probability("attention_probs_dropout_prob", 0.1),
    )


def masked_head(hidden: int, vocab: int, tied_to: Parameter | None) -> tuple[Linear, Parameter]:
    """The decoder over the vocabulary, and the bias that the head names beside it."""
    decoder = Linear(hidden, vocab, True)
    bias = Parameter((vocab,))
    if tied_to is not None:
        decoder.weight, decoder.bias = tied_to, bias
    return decoder, bias


def feed_forward_names(num_layers: int) -> tuple[str, ...]:
    """The feed-forward pair's names; the second one's last part is the attention's output too, hence the layer."""
    return ("intermediate.dense", *(f"{layer}.output.dense" for layer in range(num_layers)))


def _classify(c: Config, s: Shape, model: ModelSpec, num_labels: int) -> None:
    """A classifier of each sequence's first token: BERT's behind its pooler, RoBERTa's with a linear of its own."""
    row, stem = ROWS[model.family], model.stem
    dropout = s.dropout if c.get("classifier_dropout") is None else c.probability("classifier_dropout")
    stem.remove(row.head.partition(".")[0])
    dense, last = Linear(s.hidden, s.hidden, True), Linear(s.hidden, num_labels, True)
    holder = Module()
    if row.pooled:
        stem.child(row.body).add("pooler", holder)
        outer, name, path = stem, "classifier", f"{row.body}.pooler"
    else:
        stem.add("classifier", holder)
        outer, name, path = holder, "out_proj", "classifier"
    holder.add("dense", dense)
    outer.add(name, last)
    model.head, model.head_path = last, "classifier" if row.pooled else "classifier.out_proj"
    model.transform = None

    def scores(t: Ops, x: Tensor) -> Tensor:
        first = t.slice(x, (x.shape[0], x.shape[2]))
        if not row.pooled:
            first = t.dropout(first, dropout)
        first = t.tanh(t.call(f"{path}.dense", holder.children["dense"], first))
        first = t.dropout(first, dropout)
        return t.call(model.head_path, outer.children[name], first)  # type: ignore[no-any-return]

    model.scores = scores


def build(c: Config) -> ModelSpec:
    """BERT or RoBERTa, from its config."""
    family: str = c["model_type"]
    row, s = ROWS[family], shape(c)
    for key in ("is_decoder", "add_cross_attention"):
        if c.flag(key):
            raise c.fail(key, True, "false: an encoder that attends in both directions")
    positions = c.size("max_position_embeddings", 512)
    vocab = c.size("vocab_size", 30522 if family == "bert" else 50265)
    embeddings = Embeddings(c, s, vocab, positions, row.offset_positions)
    tied = embeddings.word_embeddings.weight if c.flag("tie_word_embeddings", True) else None
    decoder, bias = masked_head(s.hidden, vocab, tied)
    stem, body = Module(), Module()
    body.add("embeddings", embeddings)
    stem.add(row.body, body)
    if family == "bert":
        head, outer = Module(), Module()
        transform = Transform(s.hidden, s.activation, "LayerNorm")
        head.add("transform", transform)
        outer.add("predictions", head)
        stem.add("cls", outer)
        transform_path = "cls.predictions.transform"
    else:
        head = transform = Transform(s.hidden, "gelu", "layer_norm")
        stem.add("lm_head", head)
        transform_path = "lm_head"
    head.bias = bias
    head.add("decoder", decoder)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, Given]:
        x = t.call(f"{row.body}.embeddings", embeddings, ids)
        steps = cache_positions(t, ids.shape[1])
        return x, (both_ways_mask(t, ids, x.dtype), steps)

    num_layers = c.count("num_hidden_layers", 12)
    limit = positions - (c.natural("pad_token_id", row.padding_id) + 1 if row.offset_positions else 0)
    return ModelSpec(
        family=family,
        stem=stem,
        runs=[BlockRun(Block(SelfAttention(s), s), num_layers, 0, f"{row.body}.encoder.layer")],
        enter=enter,
        leave=lambda t, x: x,
        head=decoder,
        head_path=f"{row.head}.decoder",
        vocab_size=vocab,
        max_seq_len=max(limit, 1),
        transform=lambda t, x: t.call(transform_path, transform, x),
        encoder=True,
        attention_targets=("query", "key", "value", "attention.output.dense"),
        mlp_targets=feed_forward_names(num_layers),
        classify=partial(_classify, c, s),
    )
