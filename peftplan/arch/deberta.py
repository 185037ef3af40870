"""DeBERTa v2 and v3 with their masked-language-model head: attention to content and to relative positions.

Source: transformers 5.23 modeling_deberta_v2.py, configuration_deberta_v2.py. The library has the written-out
attention alone for it, and keeps every block's output until the encoder's caller returns.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from peftplan.arch.bert_like import Block, Shape, Transform, masked_head, shape, targets_of
from peftplan.arch.config import Config, activation
from peftplan.arch.relative_positions import distances_between
from peftplan.specs.formats import BOOL, INT64
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, LayerNorm, Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


@dataclass(frozen=True, slots=True)
class Relative:
    """How attention sees positions: which products are added, and over how many distances."""

    content_to_position: bool
    position_to_content: bool
    shared_projections: bool
    span: int  # distances on either side; 0 where attention is by content alone
    bucketed: bool
    normalised: bool
    head_dim: int

    @property
    def compared(self) -> bool:
        """Whether anything is compared with positions at all."""
        return self.content_to_position or self.position_to_content


# mask, distances [1, length, length], their embeddings, and the embedded words
Given = tuple[Tensor, Tensor | None, Tensor | None, Tensor]


def relative(c: Config, s: Shape) -> Relative:
    """The config's keys on relative positions, with the defaults of the modelling code."""
    kinds = c.get("pos_att_type") or ()
    if isinstance(kinds, str):
        kinds = [kind.strip() for kind in kinds.lower().split("|")]
    if not isinstance(kinds, (list, tuple)) or not all(isinstance(kind, str) for kind in kinds):
        raise c.fail("pos_att_type", kinds, "c2p, p2c or both, joined by |")
    span = 0
    buckets = perhaps(c, "position_buckets")
    if c.flag("relative_attention"):
        furthest = perhaps(c, "max_relative_positions") or c.size("max_position_embeddings", 512)
        span = buckets or furthest
    norms = c.word("norm_rel_ebd", "none").lower().split("|")
    return Relative(
        "c2p" in kinds,
        "p2c" in kinds,
        c.flag("share_att_key"),
        span,
        buckets > 0,
        "layer_norm" in [norm.strip() for norm in norms],
        c.size("attention_head_size", s.hidden // s.heads),
    )


def perhaps(c: Config, key: str) -> int:
    """A whole number where -1, like an absent key, means none: then 0."""
    return 0 if c.get(key) == -1 else c.natural(key)


class Embeddings(Module):
    """Words, and perhaps positions and types, normalised, masked, dropped out."""

    def __init__(self, c: Config, s: Shape, vocab: int, width: int, positions: int) -> None:
        super().__init__()
        self.s = s
        self.word_embeddings = Embedding(vocab, width)
        self.places = c.flag("position_biased_input", True)
        if self.places:
            self.add("position_embeddings", Embedding(positions, width))
        types = c.natural("type_vocab_size")
        if types:
            self.add("token_type_embeddings", Embedding(types, width))
        if width != s.hidden:
            self.add("embed_proj", Linear(width, s.hidden))
        self.add("LayerNorm", LayerNorm(s.hidden))
        self.position_ids = Parameter((1, positions), INT64, role="buffer")

    def forward(self, t: Ops, x: Tensor, types: Tensor) -> Tensor:  # type: ignore[override]
        batch, length = x.shape
        x = words = t.call("word_embeddings", self.word_embeddings, x)
        if self.places:
            ids = t.part(self.position_ids, (1, length))
            of_place = t.call("position_embeddings", self.children["position_embeddings"], ids)
            x = t.add(x, of_place)
        else:
            of_place = t.like(words, "zeros_like")  # made, and never added
        for name, inputs in (("token_type_embeddings", types), ("embed_proj", None)):
            if name in self.children:
                out = t.call(name, self.children[name], x if inputs is None else inputs)
                x = out if inputs is None else t.add(x, out)
        x = t.call("LayerNorm", self.children["LayerNorm"], x)
        mask = t.new((batch, length, 1), batch * length, x.dtype, "_to_copy")
        x = t.mul(x, mask)
        return t.dropout(x, self.s.dropout)  # type: ignore[no-any-return]


class SelfAttention(Module):
    """Content against content, content against position, position against content, in one softmax."""

    applied_often = True  # shared projections are applied to the distances too

    def __init__(self, s: Shape, r: Relative) -> None:
        super().__init__()
        self.s, self.r = s, r
        width = s.heads * r.head_dim
        self.query_proj = Linear(s.hidden, width, True)
        self.key_proj = Linear(s.hidden, width, True)
        self.value_proj = Linear(s.hidden, width, True)
        own = r.span > 0 and not r.shared_projections
        if own and r.content_to_position:
            self.add("pos_key_proj", Linear(s.hidden, width, True))
        if own and r.position_to_content:
            self.add("pos_query_proj", Linear(s.hidden, width, True))

    def by_head(self, t: Ops, name: str, x: Tensor, turned: bool = False) -> Tensor:
        """A projection of [batch, length, hidden], laid out head by head: [batch * heads, length, dim].

        The gradient has to be laid out anew on its way back, unless it comes with its sides `turned`.
        """
        batch, length, _ = x.shape
        out = t.call(name, self.children[name], x)
        out = t.view(out, (batch, self.s.heads, length, self.r.head_dim))
        out = t.contiguous(out) if turned else t.relaid(out)
        return t.view(out, (batch * self.s.heads, length, self.r.head_dim))  # type: ignore[no-any-return]

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        s, dim = self.s, self.r.head_dim
        batch, length, _ = x.shape
        flat = (batch * s.heads, length, length)
        query = self.by_head(t, "query_proj", x)
        key = self.by_head(t, "key_proj", x)
        value = self.by_head(t, "value_proj", x)
        scores = t.matmul(query, t.mul_scalar(key, "div"), flat)
        if self.r.span:
            with used(t, self.r.compared):
                distances = t.dropout(given[2], s.dropout)
            bias = self.position_bias(t, query, key, given[1], distances)
            scores = t.add_scalar(scores) if bias is None else t.add(scores, bias)
        scores = t.view(scores, (batch, s.heads, length, length))
        mask = t.new((batch, 1, length, length), batch * length * length, BOOL, "_to_copy")
        scores = t.masked_fill(scores, t.like(mask, "bitwise_not"))
        weights = t.softmax(scores)
        weights = t.dropout(weights, s.attention_dropout)
        out = t.matmul(t.view(weights, flat), value, (batch * s.heads, length, dim))
        out = t.relaid(t.view(out, (batch, length, s.heads, dim)))
        return t.view(out, (batch, length, s.heads * dim))  # type: ignore[no-any-return]

    def position_bias(
        self, t: Ops, query: Tensor, key: Tensor, relative: Tensor, distances: Tensor
    ) -> Tensor | None:
        """What is added to the scores for the distance of query and key: [batch * heads, length, length]."""
        r = self.r
        rows = t.view(distances, (1, *distances.shape))
        if r.shared_projections:  # both are made, also one that nothing uses and no gradient reaches
            with used(t, r.position_to_content):
                queries = self.of_positions(t, "query_proj", rows, query.shape[0])
            with used(t, r.content_to_position):
                keys = self.of_positions(t, "key_proj", rows, query.shape[0])
        else:
            keys = self.of_positions(t, "pos_key_proj", rows, query.shape[0])
            queries = self.of_positions(t, "pos_query_proj", rows, query.shape[0])
        bias = None
        if r.content_to_position:
            seen = t.matmul(query, keys, (*query.shape[:2], 2 * r.span))
            place = clamped(t, relative)
            seen = t.gather(seen, t.part(place, (*query.shape[:2], query.shape[1])))
            bias = t.add_scalar(t.mul_scalar(seen, "div"))
        if r.position_to_content:
            opposite = clamped(t, t.like(relative, "neg"))
            seen_by = t.matmul(key, queries, (*key.shape[:2], 2 * r.span))
            seen_by = t.gather(seen_by, t.part(opposite, (*key.shape[:2], key.shape[1])))
            scaled = t.mul_scalar(seen_by, "div")
            bias = t.add_scalar(scaled) if bias is None else t.add_(bias, scaled)
        return bias

    def of_positions(self, t: Ops, name: str, rows: Tensor, copies: int) -> Tensor | None:
        """A projection of the distances by head, repeated for every sequence; None where the model has none."""
        if name not in self.children:
            return None
        heads = self.by_head(t, name, rows, turned=copies == self.s.heads)
        return t.expand_copy(heads, (copies, *heads.shape[1:]))  # type: ignore[no-any-return]


def used(t: Ops, wanted: bool) -> AbstractContextManager[Any]:
    """Around what is computed whether `wanted` or not: a graph that nothing uses goes at once."""
    return nullcontext() if wanted else t.no_grad()  # type: ignore[no-any-return]


def clamped(t: Ops, distances: Tensor) -> Tensor:
    """Rows of the distance embeddings: shifted to start at 0, held within the span."""
    distances = t.like(distances, "add")
    return t.like(distances, "clamp")  # type: ignore[no-any-return]


class KeptBlock(Block):
    """A block whose output the encoder keeps among all hidden states."""

    def forward(self, t: Ops, x: Tensor, given: object) -> Tensor:  # type: ignore[override]
        out = super().forward(t, x, given)
        t.keep(out)
        return out


class Conv1d(Module):
    """nn.Conv1d of equal widths; no linear, so neither packed nor targeted."""

    def __init__(self, width: int, groups: int, kernel: int) -> None:
        super().__init__()
        self.weight = Parameter((width, width // groups, kernel))
        self.bias = Parameter((width,))

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        return t.conv1d(x, self.weight, self.bias)  # type: ignore[no-any-return]


class ConvLayer(Module):
    """A convolution of the embedded words, added to the first block's output and normalised."""

    def __init__(self, c: Config, s: Shape, kernel: int) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise c.fail("conv_kernel_size", kernel, "an odd number")
        groups = c.count("conv_groups", 1)
        c.divides("conv_groups", groups, "hidden_size", s.hidden)
        self.s, self.activation = s, activation(c, "conv_act", "tanh")
        self.conv = Conv1d(s.hidden, groups, kernel)
        self.add("LayerNorm", LayerNorm(s.hidden))

    def forward(self, t: Ops, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        batch, length, width = x.shape
        out = t.call("conv", self.conv, t.contiguous(t.view(x, (batch, width, length))))
        out = t.contiguous(t.view(out, x.shape))
        inverse = t.new((batch, length), batch * length, INT64, "rsub")
        padding = t.new((batch, length), batch * length, BOOL, "_to_copy")
        del inverse
        out = t.masked_fill_(out, t.part(padding, out.shape))
        out = t.activation(t.dropout(out, self.s.dropout), self.activation)
        total = t.add(residual, out)
        normed = t.to(t.call("LayerNorm", self.children["LayerNorm"], total), total.dtype)
        mask = t.new((batch, length, 1), batch * length, normed.dtype, "_to_copy")
        return t.mul(normed, mask)  # type: ignore[no-any-return]


class Encoder(Module):
    """What stands beside the blocks under `encoder`: the distances' embeddings and the convolution."""

    def __init__(self, c: Config, s: Shape, r: Relative) -> None:
        super().__init__()
        if r.span:
            self.rel_embeddings = Embedding(2 * r.span, s.hidden)
        if r.normalised:
            self.add("LayerNorm", LayerNorm(s.hidden))
        kernel = perhaps(c, "conv_kernel_size")
        if kernel:
            self.conv = ConvLayer(c, s, kernel)

    def distances(self, t: Ops) -> Tensor:
        """The embeddings of all distances, as every block is given them."""
        weight = self.rel_embeddings.weight
        if "LayerNorm" not in self.children:
            return t.shared_weight(weight)  # type: ignore[no-any-return]
        return t.call("LayerNorm", self.children["LayerNorm"], weight)  # type: ignore[no-any-return]


def build(c: Config) -> ModelSpec:
    """DeBERTa v2 or v3, from its config."""
    s = shape(c, 1536, 24, 6144)
    r = relative(c, s)
    if r.head_dim * s.heads != s.hidden:
        raise c.fail("attention_head_size", r.head_dim, f"{s.hidden // s.heads}, the width over the heads")
    vocab, positions = c.size("vocab_size", 128100), c.size("max_position_embeddings", 512)
    width = c.size("embedding_size", s.hidden)
    embeddings = Embeddings(c, s, vocab, width, positions)
    encoder = Encoder(c, s, r)
    stem, body = Module(), Module()
    body.add("embeddings", embeddings)
    body.add("encoder", encoder)
    stem.add("deberta", body)

    def enter(t: Ops, ids: Tensor) -> tuple[Tensor, Given]:
        batch, length = ids.shape
        types = t.new(ids.shape, ids.numel, INT64, "zeros")
        t.keep(types)
        x = t.call("deberta.embeddings", embeddings, ids, types)
        mask = t.new((batch, 1, length, length), batch * length * length, INT64, "mul")
        if not r.span:
            return x, (mask, None, None, x)
        relative = distances_between(t, length, r.bucketed)
        with used(t, r.compared):
            return x, (mask, relative, encoder.distances(t), x)

    def convolve(t: Ops, x: Tensor, given: Given) -> tuple[Tensor, Given]:
        x = t.call("deberta.encoder.conv", encoder.children["conv"], given[3], x)
        t.keep(x)
        return x, given

    num_layers = c.count("num_hidden_layers", 24)
    spec = ModelSpec(
        family="deberta-v2",
        stem=stem,
        runs=runs_of(s, r, num_layers, convolve if "conv" in encoder.children else None),
        enter=enter,
        leave=lambda t, x: x,
        head=Linear(1, 1),
        head_path="",
        vocab_size=vocab,
        max_seq_len=positions,
        encoder=True,
        attention_kinds=("eager",),
        **targets_of(("query_proj", "key_proj", "value_proj", "pos_key_proj", "pos_query_proj"), num_layers),
    )
    (old_head if c.flag("legacy", True) else new_head)(c, s, spec, embeddings, width)
    return spec


def runs_of(s: Shape, r: Relative, num_layers: int, convolve: Any) -> list[BlockRun]:
    """The blocks: the first by itself where a convolution follows it, the last since shared gradients begin there."""
    path, block = "deberta.encoder.layer", KeptBlock(SelfAttention(s, r), s)
    first = 1 if convolve else 0
    runs = [BlockRun(Block(SelfAttention(s, r), s), 1, 0, path)] if convolve else []
    rest = num_layers - first
    runs.append(BlockRun(block, max(rest - 1, 1) if rest else 0, first, path, before=convolve))
    if rest > 1:
        runs.append(BlockRun(block, 1, num_layers - 1, path, apart=True))
    return runs


def old_head(c: Config, s: Shape, spec: ModelSpec, embeddings: Embeddings, width: int) -> None:
    """BERT's head (`legacy`), its decoder tied to the words."""
    tied = embeddings.word_embeddings.weight if c.flag("tie_word_embeddings", True) else None
    spec.head, bias = masked_head(width, spec.vocab_size, tied)
    transform = Transform(s.hidden, s.activation, "LayerNorm", width)
    head, outer = Module(), Module()
    head.bias = bias
    head.add("transform", transform)
    head.add("decoder", spec.head)
    outer.add("predictions", head)
    spec.stem.add("cls", outer)
    spec.head_path = "cls.predictions.decoder"
    spec.transform = lambda t, x: t.call("cls.predictions.transform", transform, x)


def new_head(c: Config, s: Shape, spec: ModelSpec, embeddings: Embeddings, width: int) -> None:
    """The head that multiplies by the word embeddings themselves; the library takes its linear for the output's."""
    if width != s.hidden:
        raise c.fail("embedding_size", width, f"hidden_size ({s.hidden}) where legacy is false")
    transform, outer = Transform(s.hidden, s.activation, "LayerNorm"), Module()
    bias = transform.bias = Parameter((spec.vocab_size,))
    outer.add("lm_head", transform)
    spec.stem.add("lm_predictions", outer)
    spec.head, spec.head_path = transform.dense, "lm_predictions.lm_head.dense"

    def logits(t: Ops, x: Tensor) -> Tensor:
        x = t.call("lm_predictions.lm_head", transform, x)
        return t.add(t.linear(x, embeddings.word_embeddings.weight), bias)  # type: ignore[no-any-return]

    spec.logits = logits
