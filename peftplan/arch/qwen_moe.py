"""Qwen's mixtures of experts, of the second and third generation.

Source: transformers 5.23 modeling_qwen2_moe.py, modeling_qwen3_moe.py and their configuration files.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import partial

from peftplan.arch.config import Config, activation, alias, head_dim
from peftplan.arch.llama_like import DecoderStem, GatedMLP
from peftplan.arch.looped_experts import QWEN_NAMES, Expert, LoopedMLP
from peftplan.arch.masks import attention_mask
from peftplan.arch.mixtral import SparseMLP, single_mask
from peftplan.arch.moe import QWEN_LINEARS, Experts, Router, inactive_weights, router_notes, top_k_of
from peftplan.arch.sparse_decoder import Block, MaskedAttention, Masks, decoder
from peftplan.specs.cache import cached_heads
from peftplan.specs.formats import DType
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops, RMSNorm
from peftplan.specs.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a generation's config class takes where a key is absent."""

    heads: int
    kv_heads: int
    intermediate: int
    num_experts: int
    top_k: int
    inner: int


DEFAULTS = {
    "qwen2_moe": Defaults(16, 16, 5632, 60, 4, 1408),
    "qwen3_moe": Defaults(32, 4, 6144, 128, 8, 768),
}
DEFAULT_LAYERS = 24


class SharedExpertMLP(Module):
    """Experts, and beside them one that every token visits, weighed by a gate of its own."""

    def __init__(self, gate: Router, experts: Experts, shared: GatedMLP, hidden: int) -> None:
        super().__init__()
        self.gate = gate
        self.experts = experts
        self.shared_expert = shared
        self.shared_expert_gate = Linear(hidden, 1)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        shape = x.shape
        flat = t.view(x, (x.numel // shape[-1], shape[-1]))
        shared = t.call("shared_expert", self.shared_expert, flat)
        _logits, weights, chosen = t.call("gate", self.gate, flat)
        out = t.call("experts", self.experts, flat, chosen, weights)
        weight = t.sigmoid(t.call("shared_expert_gate", self.shared_expert_gate, flat))
        shared = t.mul(weight, shared)
        del weight
        out = t.add(out, shared)
        return t.view(out, shape)  # type: ignore[no-any-return]


def looped(hidden: int, experts: Experts, router: Router, shared: Module | None = None) -> LoopedMLP:
    """The same as linears of each expert."""
    each = [Expert(hidden, experts.inner, experts.activation, QWEN_NAMES) for _ in range(experts.num_experts)]
    return LoopedMLP(hidden, each, router.top_k, router.normalise, shared)


def layer_kinds(c: Config) -> list[bool]:
    """For each layer whether it has experts, or an MLP: `decoder_sparse_step` and `mlp_only_layers`."""
    step, num_layers = c.count("decoder_sparse_step", 1), c.count("num_hidden_layers", DEFAULT_LAYERS)
    dense = c.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(i) is int and i >= 0 for i in dense):
        raise c.fail("mlp_only_layers", dense, "a list of layer numbers, the first being 0")
    return [i not in dense and (i + 1) % step == 0 for i in range(num_layers)]


def windowed_layers(c: Config, num_layers: int) -> list[bool]:
    """For each layer of a Qwen2-MoE whether it sees a window only."""
    kinds = c.words("layer_types")
    if kinds is not None:
        if len(kinds) < num_layers:
            raise c.fail("layer_types", kinds, f"a list with an entry for each of {num_layers} layers")
        return [kind == "sliding_attention" for kind in kinds[:num_layers]]
    sliding, limit = c.flag("use_sliding_window"), c.natural("max_window_layers", 28)
    return [sliding and i % 2 == 0 and i < limit for i in range(num_layers)]


def both_masks(window: int, t: Ops, batch: int, length: int, dtype: DType) -> tuple[Tensor | None, Tensor | None]:
    """Qwen2-MoE makes the windowed mask whether a layer uses it or not; no window means one of length 0."""
    full = attention_mask(t, batch, length, dtype)
    return full, attention_mask(t, batch, length, dtype, window)


def build(c: Config) -> ModelSpec:
    """A Qwen2-MoE or Qwen3-MoE, from its config."""
    second, d = c["model_type"] == "qwen2_moe", DEFAULTS[c["model_type"]]
    hidden, heads = c.size("hidden_size", 2048), c.count("num_attention_heads", d.heads)
    kv_heads = c.count("num_key_value_heads", d.kv_heads)
    c.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    dim, dropout = head_dim(c, hidden, heads), c.probability("attention_dropout")
    num_experts = c.count(alias(c, "num_experts", "num_local_experts"), d.num_experts)
    top_k = top_k_of(c, "num_experts_per_tok", num_experts, d.top_k)
    act = activation(c, "hidden_act", "silu")
    experts = Experts(num_experts, hidden, c.size("moe_intermediate_size", d.inner), act)
    router = Router(hidden, num_experts, top_k, c.flag("norm_topk_prob"), narrow=True)
    dense = GatedMLP(hidden, c.size("intermediate_size", d.intermediate), act, False)
    qkv_bias = c.flag("qkv_bias", True) if second else c.flag("attention_bias")
    out_bias = False if second else c.flag("attention_bias")
    does = c.behaviour
    attention = MaskedAttention(hidden, heads, kv_heads, dim, dropout, qkv_bias=qkv_bias, out_bias=out_bias)
    sparse_layers = layer_kinds(c)
    window = c.size("sliding_window", 4096) if c.flag("use_sliding_window") else None
    sparse: Module
    masks: Masks
    if second:
        shared = GatedMLP(hidden, c.size("shared_expert_intermediate_size", 5632), act, False)
        sparse = SharedExpertMLP(router, experts, shared, hidden)
        if does.experts == "linears":
            sparse = looped(hidden, experts, router, shared)
        windowed = windowed_layers(c, len(sparse_layers))
        masks = partial(both_masks, window or 0)
        if does.attention_inline:  # one mask for all layers
            windowed = [False] * len(sparse_layers)
            masks = partial(single_mask, window)
    else:
        attention.norm_heads()
        sparse = SparseMLP(router, experts)
        if does.experts == "linears":
            sparse = looped(hidden, experts, router)
        windowed = [False] * len(sparse_layers)
        masks = partial(single_mask, window)
    kinds: dict[tuple[bool, bool], Block] = {}
    for kind in zip(sparse_layers, windowed):
        if kind not in kinds:
            mlp = sparse if kind[0] else dense
            seen = window if kind[1] or not second else None
            attention.caches = cached_heads(kv_heads, dim, heads, seen)
            kinds[kind] = deepcopy(Block(attention, mlp, partial(RMSNorm, hidden), windowed=kind[1]))
    spec = decoder(
        c,
        [kinds[kind] for kind in zip(sparse_layers, windowed)],
        masks,
        model=DecoderStem(c.size("vocab_size", 151936), hidden, dim),
        default_length=32768,
        inactive_params=sum(sparse_layers) * inactive_weights(experts, top_k),
        former_linears=None if second or does.experts == "linears" else QWEN_LINEARS,
    )
    spec.notes += router_notes(c)
    return spec
