"""DeBERTa's disentangled attention: to content, and to how far away it stands.

Source: transformers 5.23 modeling_deberta_v2.py (DisentangledSelfAttention).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from peftplan.arch.bert_like import Shape
from peftplan.arch.config import Config
from peftplan.specs.formats import BOOL
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor


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


def projections_of(r: Relative) -> tuple[str, ...]:
    """The attention's input projections: three of the content, and those of the distances alone."""
    own = r.span > 0 and not r.shared_projections
    keys = ("pos_key_proj",) if own and r.content_to_position else ()
    queries = ("pos_query_proj",) if own and r.position_to_content else ()
    return ("query_proj", "key_proj", "value_proj", *keys, *queries)


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
        for name in projections_of(r)[3:]:
            self.add(name, Linear(s.hidden, width, True))

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
        if given[1] is not None:
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
    return nullcontext() if wanted else t.no_grad()


def clamped(t: Ops, distances: Tensor) -> Tensor:
    """Rows of the distance embeddings: shifted to start at 0, held within the span."""
    distances = t.like(distances, "add")
    return t.like(distances, "clamp")  # type: ignore[no-any-return]
