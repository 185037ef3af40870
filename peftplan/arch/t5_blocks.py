"""The blocks of T5's two stacks.

Each stack's first block makes the bias by relative position that all its blocks add to their scores; in the
decoder every block also attends to the encoder's output, with a bias of zeros.

Source: transformers 5.23 modeling_t5.py; integrations/sdpa_attention.py (create_position_bias_mask: the bias
becomes the kernel's mask).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from peftplan.arch.plain_attention import plain_attention
from peftplan.arch.relative_positions import position_buckets
from peftplan.specs.formats import BOOL, FP16, FP32, INT64, DType
from peftplan.specs.modules import Embedding, Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """A T5's sizes and its one dropout probability."""

    hidden: int
    heads: int
    dim: int
    inner: int
    buckets: int
    gated: bool
    activation: str
    dropout: float


class Given(NamedTuple):
    """What a stack's blocks share: biases, the encoder's output, masks of their own side and of the encoder's."""

    bias: Tensor | None = None
    cross_bias: Tensor | None = None
    encoded: Tensor | None = None
    mask: Tensor | None = None
    cross_mask: Tensor | None = None
    steps: Tensor | None = None  # positions in the sequence


class Norm(Module):
    """RMS norm: statistics in fp32, the product brought to the weight's type only if that has 16 bits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = Parameter((width,))

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        variance = t.mean_last(t.pow(t.to(x, FP32)))
        x = t.mul(x, t.rsqrt(t.add_scalar(variance)))
        if self.weight.dtype is not FP32:
            x = t.to(x, self.weight.dtype)
        return t.mul(self.weight, x)  # type: ignore[no-any-return]


class WideOutput(Linear):
    """`wo`, which the library keeps in fp32 where it loads fp16, and for that sake never packs."""

    convertible = False

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.weight.wide = True


def weight_type(module: Module) -> DType:
    """The type of the weight that stands under a linear's name, also below an adapter."""
    while "weight" not in module.parameters:
        module = next(iter(module.children.values()))
    return module.parameters["weight"].dtype


class FeedForward(Module):
    """wo(dropout(act(wi(x)))), or with a gate."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        for name in ("wi_0", "wi_1") if s.gated else ("wi",):
            self.add(name, Linear(s.hidden, s.inner))
        self.wo = WideOutput(s.inner, s.hidden)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        children, s = self.children, self.s
        if s.gated:
            gate = t.activation(t.call("wi_0", children["wi_0"], x), s.activation)
            up = t.call("wi_1", children["wi_1"], x)
            x = t.mul(gate, up)
        else:
            x = t.call("wi", children["wi"], x)
            x = t.activation(x, s.activation)
        x = t.dropout(x, s.dropout)
        x = t.to(x, weight_type(self.wo))
        return t.call("wo", self.wo, x)  # type: ignore[no-any-return]


class LayerFF(Module):
    """The feed-forward part behind its norm and beside a residual."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.add("DenseReluDense", FeedForward(s))
        self.layer_norm = Norm(s.hidden)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        forwarded = t.call("layer_norm", self.layer_norm, x)
        forwarded = t.call("DenseReluDense", self.children["DenseReluDense"], forwarded)
        return t.add(x, t.dropout(forwarded, self.s.dropout))  # type: ignore[no-any-return]


class Attention(Module):
    """Attention with a bias added to its unscaled scores; makes the bias where it is given none."""

    def __init__(self, s: Shape, first: bool, causal: bool | None) -> None:
        super().__init__()
        self.s, self.causal = s, causal  # None: attention to the encoder's output
        width = s.heads * s.dim
        self.q = Linear(s.hidden, width)
        self.k = Linear(s.hidden, width)
        self.v = Linear(s.hidden, width)
        self.o = Linear(width, s.hidden)
        if first:
            self.add("relative_attention_bias", Embedding(s.buckets, s.heads))

    def forward(  # type: ignore[override]
        self, t: Ops, x: Tensor, source: Tensor, bias: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        s = self.s
        batch, length, _ = x.shape
        heads = (batch, s.heads, length, s.dim)
        q = t.view(t.call("q", self.q, x), heads)
        k = t.view(t.call("k", self.k, source), heads)
        v = t.view(t.call("v", self.v, source), heads)
        if not t.behaviour.bias_apart:
            return self.masked_once(t, x, (q, k, v), bias, mask)
        if bias is None:
            bias = self.new_bias(t, q)
        if t.attention == "eager":
            biases = (bias,) if mask is None else (bias, mask)
            out = plain_attention(t, q, k, v, biases, s.dropout)
        else:
            out = t.attend(q, k, v, self.as_mask(t, bias, mask), s.dropout, causal=False)
        out = t.view(out, (batch, length, s.heads * s.dim))
        out = t.call("o", self.o, out)
        return out, bias

    def masked_once(
        self, t: Ops, x: Tensor, parts: tuple[Tensor, Tensor, Tensor], bias: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As older releases write it: the first block's bias takes the mask up, scores take the bias in place."""
        q, k, v = parts
        batch, heads, length, dim = q.shape
        scores = t.matmul(q, k, (batch, heads, length, k.shape[2]), copied=(True, True))
        if bias is None:
            bias = self.new_bias(t, scores)
            if mask is not None:
                bias = t.add(bias, mask)
        scores = t.add_in_place(scores, bias)
        weights = t.to(t.softmax(t.to(scores, FP32)), scores.dtype)
        weights = t.dropout(weights, self.s.dropout)
        out = t.contiguous(t.matmul(weights, v, q.shape, copied=(False, True)))
        return t.call("o", self.o, t.view(out, (batch, length, heads * dim))), bias

    def new_bias(self, t: Ops, like: Tensor) -> Tensor:
        """[1, heads, length, length]: looked up by bucket, or zeros, which ask for a gradient if checkpointed."""
        heads, length = like.shape[1], like.shape[2]
        shape = (1, heads, length, length)
        table = self.children.get("relative_attention_bias")
        if table is not None:
            buckets = position_buckets(t, length, self.causal is True)
            return t.view(t.call("relative_attention_bias", table, buckets), shape)  # type: ignore[no-any-return]
        zeros: Tensor = t.new(shape, heads * length * length, like.dtype, "zeros")
        if t.checkpointing:
            t.ask_gradient(zeros)
        return zeros

    def as_mask(self, t: Ops, bias: Tensor, mask: Tensor | None) -> Tensor:
        """The bias as the kernel takes it: without what is padded, causal where the stack is, and contiguous."""
        _, heads, length, _ = bias.shape
        if mask is not None:
            bias = t.where(mask, bias)
        if self.causal is None:
            return bias
        if self.causal:
            steps = t.new((length,), length, INT64, "arange")
            others = t.new((length,), length, INT64, "arange")
            before = t.new((1, 1, length, length), length * length, BOOL, "ge")
            del steps, others
            bias = t.where(before, bias)
        # it comes from the table with heads as the last dimension
        return t.contiguous(bias) if heads > 1 and length > 1 else bias


class LayerAttention(Module):
    """Attention under the name the real layer gives it, behind its norm and beside a residual."""

    def __init__(self, s: Shape, name: str, attention: Attention) -> None:
        super().__init__()
        self.s, self.name = s, name
        self.add(name, attention)
        self.layer_norm = Norm(s.hidden)

    def forward(  # type: ignore[override]
        self, t: Ops, x: Tensor, source: Tensor | None, bias: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        normed = t.call("layer_norm", self.layer_norm, x)
        attention = self.children[self.name]
        attended, bias = t.call(self.name, attention, normed, normed if source is None else source, bias, mask)
        assert bias is not None
        return t.add(x, t.dropout(attended, self.s.dropout)), bias


class Block(Module):
    """Self-attention, in a decoder attention to the encoder's output, feed-forward."""

    positional = (0, 1, 2, 3, 4)
    hands_on = (0, 1)

    def __init__(self, s: Shape, first: bool, decoder: bool) -> None:
        super().__init__()
        self.first = first
        layers: list[Module] = [LayerAttention(s, "SelfAttention", Attention(s, first, decoder))]
        if decoder:
            layers.append(LayerAttention(s, "EncDecAttention", Attention(s, False, None)))
        layers.append(LayerFF(s))
        self.layer = Module()
        for number, layer in enumerate(layers):
            self.layer.add(str(number), layer)

    def forward(self, t: Ops, x: Tensor, given: Given) -> Tensor | tuple[Tensor, Given]:  # type: ignore[override]
        layers = list(self.layer.children.values())
        x, bias = t.call("layer.0", layers[0], x, None, given.bias, given.mask)
        x = held_finite(t, x)
        cross_bias = None
        if given.encoded is not None:
            x, cross_bias = t.call("layer.1", layers[1], x, given.encoded, given.cross_bias, given.cross_mask)
            del t.block_weights[:-1]  # the name that held them now holds this attention's
            x = held_finite(t, x)
        x = t.call(f"layer.{len(layers) - 1}", layers[-1], x)
        x = held_finite(t, x)
        if not self.first:
            return x
        return x, given._replace(bias=bias, cross_bias=cross_bias)


def held_finite(t: Ops, x: Tensor) -> Tensor:
    """Hidden states in fp16 are held within its range: a look for infinities, then a clamp."""
    if x.dtype is not FP16:
        return x
    size = t.like(x, "abs")
    infinite = t.new(x.shape, x.numel, BOOL, "eq")
    del size
    found = t.new((), 1, BOOL, "any")
    del infinite
    most = t.new((), 1, FP32, "where")
    del found
    least = t.like(most, "neg")
    return t.clamp_between(x, least, most)  # type: ignore[no-any-return]
