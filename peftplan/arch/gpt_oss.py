"""gpt-oss: attention with a learned sink for each head, experts with biases and a clamped gate.

Source: transformers 5.23 modeling_gpt_oss.py, configuration_gpt_oss.py. Its flash form takes a kernel from
the Hub, which is read here as the flash-attention package.
"""

from __future__ import annotations

from copy import deepcopy

from peftplan.arch.config import Config, alias
from peftplan.arch.llama_like import DecoderStem
from peftplan.arch.masks import numbers_mask, padding_mask
from peftplan.arch.moe import Experts, Routing, inactive_weights, router_notes, top_k_of
from peftplan.arch.rotary import RotaryEmbedding, Table
from peftplan.arch.sparse_decoder import Given, Taken, decoder
from peftplan.specs.cache import cached_heads
from peftplan.specs.formats import BF16, FP32, DType
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import BareWeights, Linear, Module, Ops, RMSNorm
from peftplan.specs.tensors import Parameter, Tensor


class WideRMSNorm(RMSNorm):
    """Scaled in fp32, and brought to the input's type last; its weight stays fp32 where fp16 is loaded."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.weight.wide = True

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = t.to(x, FP32)
        variance = t.mean_last(t.pow(x))
        x = t.mul(x, t.rsqrt(t.add_scalar(variance)))
        return t.to(t.mul(self.weight, x), dtype)  # type: ignore[no-any-return]


class HalfRotaryEmbedding(RotaryEmbedding):
    """Tables of half a head's width: both halves of a head are turned by the same angles."""

    def table(self, t: Ops, x: Tensor, position_ids: Tensor) -> Table:
        """Cosines and sines [1, length, dim / 2], computed without a graph."""
        length, half = position_ids.shape[-1], self.dim // 2
        with t.no_grad():
            positions = t.new((1, length), length, FP32, "_to_copy")
            freqs = t.new((1, length, half), length * half, FP32, "mul")
            del positions
            cos = t.mul_scalar(t.like(freqs, "cos"))
            sin = t.mul_scalar(t.like(freqs, "sin"))
            cos = t.to(cos, x.dtype)
            sin = t.to(sin, x.dtype)
            del freqs
        return cos, sin


def rotate_halves(t: Ops, x: Tensor, table: Table) -> Tensor:
    """Both halves of [batch, heads, length, dim] turned and joined again."""
    cos, sin = (t.view(part, (1, *part.shape)) for part in table[:2])
    half = (*x.shape[:-1], x.shape[-1] // 2)
    first, second = t.split(x, (half, half))
    turned_first = t.sub(t.mul(first, cos), t.mul(second, sin))
    turned_second = t.add(t.mul(second, cos), t.mul(first, sin))
    return t.cat((turned_first, turned_second), x.shape)  # type: ignore[no-any-return]


def rotate_both(t: Ops, q: Tensor, k: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Queries and keys; the unrotated ones live until the pair is returned."""
    return rotate_halves(t, q, table), rotate_halves(t, k, table)


class SinkAttention(Module):
    """Grouped-query attention whose softmax has one more column, a number learned for each head."""

    def __init__(self, hidden: int, heads: int, kv_heads: int, dim: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim, self.dropout = heads, kv_heads, dim, dropout
        self.q_proj = Linear(hidden, heads * dim, bias)
        self.k_proj = Linear(hidden, kv_heads * dim, bias)
        self.v_proj = Linear(hidden, kv_heads * dim, bias)
        self.o_proj = Linear(heads * dim, hidden, bias)
        self.sinks = Parameter((heads,), BF16)
        self.caches = cached_heads(kv_heads, dim, heads)

    def forward(  # type: ignore[override]
        self, t: Ops, x: Tensor, table: Table, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        batch, length, _ = x.shape
        shape, kv_shape = (batch, self.heads, length, self.dim), (batch, self.kv_heads, length, self.dim)
        q = t.permuted(t.call("q_proj", self.q_proj, x), shape)
        k = t.permuted(t.call("k_proj", self.k_proj, x), kv_shape)
        v = t.permuted(t.call("v_proj", self.v_proj, x), kv_shape)
        q, k = rotate_both(t, q, k, table)
        if t.attention == "flash":
            out, weights = t.attend(q, k, v, mask, by_heads=True), None
        else:
            assert mask is not None
            out, weights = self.attend(t, q, k, v, mask)
        out = t.view(out, (batch, length, self.heads * self.dim))
        out = t.call("o_proj", self.o_proj, out)
        return out, weights

    def attend(self, t: Ops, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and sinks side by side, the largest taken off, softmax, the sinks' share dropped."""
        batch, heads, length, _ = q.shape
        grouped = self.kv_heads != heads
        keys, values = t.repeat_heads(k, heads), t.repeat_heads(v, heads)
        square = (batch, heads, length, length)
        weights = t.mul_scalar(t.matmul(q, keys, square))
        weights = t.add(weights, mask)
        sinks = t.expand(t.view(self.sinks, (1, heads, 1, 1)), (*square[:3], 1))
        combined = t.cat((weights, sinks), (*square[:3], length + 1))
        combined = t.sub(combined, t.max_last(combined))
        shares = t.softmax(combined, combined.dtype)
        shares = t.slice(shares, square)
        weights = t.to(t.dropout(shares, self.dropout), values.dtype)
        out = t.matmul(weights, values, (*square[:3], self.dim), copied=(False, not grouped))
        return t.contiguous(out), weights


class BiasedRouter(BareWeights):
    """The best few logits, and a softmax over those."""

    def __init__(self, hidden: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.weight = Parameter((num_experts, hidden), BF16)
        self.bias = Parameter((num_experts,), BF16)

    def forward(self, t: Ops, x: Tensor) -> Routing:  # type: ignore[override]
        logits = t.linear(x, self.weight_of(t, "weight"), self.bias)
        values, chosen = t.topk(logits, self.top_k)
        return logits, t.softmax(values, values.dtype), chosen


class BiasedExperts(Experts):
    """Weights [experts, in, out], gate and up in alternating columns, and a bias for every expert."""

    def __init__(self, num_experts: int, hidden: int, inner: int) -> None:
        BareWeights.__init__(self)
        self.num_experts, self.hidden, self.inner = num_experts, hidden, inner
        self.gate_up_proj = Parameter((num_experts, hidden, 2 * inner), BF16)
        self.gate_up_proj_bias = Parameter((num_experts, 2 * inner), BF16)
        self.down_proj = Parameter((num_experts, inner, hidden), BF16)
        self.down_proj_bias = Parameter((num_experts, hidden), BF16)

    def bias_rows(self, t: Ops, name: str, experts: Tensor) -> Tensor | None:
        """A copy of its expert's bias for every row."""
        return t.rows(self.parameters[name], experts)  # type: ignore[no-any-return]

    def gate(self, t: Ops, x: Tensor) -> Tensor:
        """(up + 1) * gate * sigmoid(alpha * gate), both clamped."""
        half = (x.shape[0], self.inner)
        gate, up = t.slice(x, half), t.slice(x, half)
        gate, up = t.clamp(gate, 1), t.clamp(up, 2)
        glu = t.mul(gate, t.sigmoid(t.mul_scalar(gate)))
        return t.mul(t.add_scalar(up), glu)  # type: ignore[no-any-return]


class RoutedMLP(Module):
    """A router and the experts it chooses from; the weights of the choice are handed on as well."""

    def __init__(self, router: BiasedRouter, experts: BiasedExperts) -> None:
        super().__init__()
        self.router = router
        self.experts = experts

    def forward(self, t: Ops, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        shape = x.shape
        x = t.view(x, (x.numel // shape[-1], shape[-1]))
        _logits, weights, chosen = t.call("router", self.router, x)
        x = t.call("experts", self.experts, x, chosen, weights)
        return t.view(x, shape), weights


class SinkBlock(Module):
    """Attention and experts, each behind a norm and beside a residual."""

    def __init__(self, attention: SinkAttention, mlp: RoutedMLP, windowed: bool) -> None:
        super().__init__()
        self.windowed = windowed
        self.self_attn = attention
        self.mlp = mlp
        self.input_layernorm = WideRMSNorm(mlp.experts.hidden)
        self.post_attention_layernorm = WideRMSNorm(mlp.experts.hidden)

    def takes(self, given: Given) -> Taken:
        """The rotary table, and the mask of the layer's kind."""
        return given.table, given.sliding if self.windowed else given.full

    def forward(self, t: Ops, x: Tensor, given: Taken) -> Tensor:  # type: ignore[override]
        residual = x
        x = t.call("input_layernorm", self.input_layernorm, x)
        # what attention hands out beside its result lives until the experts hand out theirs
        x, beside = t.call("self_attn", self.self_attn, x, *given)
        x = t.add(residual, x)
        residual = x
        x = t.call("post_attention_layernorm", self.post_attention_layernorm, x)
        x, beside = t.call("mlp", self.mlp, x)
        x = t.add(residual, x)
        del beside
        return x


def both_masks(t: Ops, batch: int, length: int, dtype: DType) -> tuple[Tensor | None, Tensor | None]:
    """Masks of full and of windowed layers, both made, needed or not."""
    if t.attention == "flash":
        return padding_mask(t, batch, length), padding_mask(t, batch, length)
    full = numbers_mask(t, batch, length, dtype)
    return full, numbers_mask(t, batch, length, dtype, windowed=True)


def windowed_layers(c: Config, num_layers: int) -> list[bool]:
    """For each layer whether it sees a window only; every other one where the config does not say."""
    kinds = c.words("layer_types")
    if kinds is None:
        return [i % 2 == 0 for i in range(num_layers)]
    if len(kinds) < num_layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise c.fail("layer_types", kinds, f"sliding_attention or full_attention for each of {num_layers} layers")
    return [kind == "sliding_attention" for kind in kinds[:num_layers]]


def build(c: Config) -> ModelSpec:
    """A gpt-oss, from its config."""
    hidden, heads = c.size("hidden_size", 2880), c.count("num_attention_heads", 64)
    kv_heads, dim = c.count("num_key_value_heads", 8), c.size("head_dim", 64)
    c.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    bias, dropout = c.flag("attention_bias", True), c.probability("attention_dropout")
    num_experts = c.count(alias(c, "num_local_experts", "num_experts"), 128)
    top_k = top_k_of(c, "num_experts_per_tok", num_experts, 4)
    experts = BiasedExperts(num_experts, hidden, c.size("intermediate_size", 2880))
    mlp = RoutedMLP(BiasedRouter(hidden, num_experts, top_k), experts)
    windowed = windowed_layers(c, c.count("num_hidden_layers", 36))
    attention = SinkAttention(hidden, heads, kv_heads, dim, bias, dropout)
    model = DecoderStem(c.size("vocab_size", 201088), hidden, dim)
    model.norm, model.rotary_emb = WideRMSNorm(hidden), HalfRotaryEmbedding(dim)
    block = SinkBlock(attention, mlp, False)
    kinds = {False: block, True: deepcopy(block)}
    kinds[True].windowed = True
    kinds[True].self_attn.caches = cached_heads(kv_heads, dim, heads, c.size("sliding_window", 128, limit=10**9))
    spec = decoder(
        c,
        [kinds[kind] for kind in windowed],
        both_masks,
        model=model,
        default_length=131072,
        mlp_targets=(),
        inactive_params=len(windowed) * inactive_weights(experts, top_k),
        former_linears=None,
    )
    spec.attention_kinds = ("flash", "eager")
    spec.notes.append(
        "transformers has no sdpa attention for gpt_oss and runs it eager: scores of every two positions; "
        "its flash attention is a kernel from the Hub, counted like the flash-attention package's"
    )
    spec.notes += router_notes(c)
    return spec
