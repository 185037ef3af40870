"""DeBERTa v2 and v3 with their masked-language-model head: attention to content and to relative positions.

Source: transformers 5.23 modeling_deberta_v2.py, configuration_deberta_v2.py. The library has the written-out
attention alone for it, and keeps every block's output until the encoder's caller returns.
"""

from __future__ import annotations

from typing import Any

from peftplan.arch.bert_like import Block, Shape, Transform, feed_forward_names, masked_head, shape
from peftplan.arch.config import Config, activation
from peftplan.arch.disentangled import Given, Relative, SelfAttention, perhaps, projections_of, relative, used
from peftplan.arch.relative_positions import distances_between
from peftplan.specs.formats import BOOL, INT64
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, LayerNorm, Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


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


class PositionedBlock(Block):
    """A block that is given positions too, but not the embedded words."""

    def takes(self, given: Given) -> tuple[Any, ...]:
        """The mask, the distances and their embeddings."""
        return given[:3]


class KeptBlock(PositionedBlock):
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
        steps = distances_between(t, length, r.bucketed)
        with used(t, r.compared):
            return x, (mask, steps, encoder.distances(t), x)

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
        attention_targets=(*projections_of(r), "attention.output.dense"),
        mlp_targets=feed_forward_names(num_layers),
    )
    (old_head if c.flag("legacy", True) else new_head)(c, s, spec, embeddings, width)
    return spec


def runs_of(s: Shape, r: Relative, num_layers: int, convolve: Any) -> list[BlockRun]:
    """The blocks: the first alone where a convolution follows it, the last since shared gradients begin there."""
    path, block = "deberta.encoder.layer", KeptBlock(SelfAttention(s, r), s)
    first = 1 if convolve else 0
    runs = [BlockRun(PositionedBlock(SelfAttention(s, r), s), 1, 0, path)] if convolve else []
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
