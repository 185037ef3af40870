"""Mixtral: Mistral's attention, experts in place of the MLP.

Source: transformers 5.23 modeling_mixtral.py, configuration_mixtral.py.
"""

from __future__ import annotations

from functools import partial

from peftplan.arch.config import Config, activation, alias, head_dim
from peftplan.arch.llama_like import DecoderStem
from peftplan.arch.looped_experts import MIXTRAL_NAMES, Expert, LoopedMLP
from peftplan.arch.masks import attention_mask
from peftplan.arch.moe import MIXTRAL_LINEARS, Experts, Router, inactive_weights, router_notes, top_k_of
from peftplan.arch.sparse_decoder import Block, MaskedAttention, decoder
from peftplan.specs.cache import cached_heads
from peftplan.specs.formats import DType
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Module, Ops, RMSNorm
from peftplan.specs.tensors import Tensor


class SparseMLP(Module):
    """A router and the experts it chooses from."""

    def __init__(self, gate: Router, experts: Experts) -> None:
        super().__init__()
        self.gate = gate
        self.experts = experts

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        shape = x.shape
        x = t.view(x, (x.numel // shape[-1], shape[-1]))
        _logits, weights, chosen = t.call("gate", self.gate, x)
        x = t.call("experts", self.experts, x, chosen, weights)
        return t.view(x, shape)  # type: ignore[no-any-return]


def single_mask(window: int | None, t: Ops, batch: int, length: int, dtype: DType) -> tuple[Tensor | None, None]:
    """One mask for all layers: with the window where the config has one."""
    return attention_mask(t, batch, length, dtype, window), None


def build(c: Config) -> ModelSpec:
    """A Mixtral, from its config."""
    hidden, heads = c.size("hidden_size", 4096), c.count("num_attention_heads", 32)
    kv_heads = c.count("num_key_value_heads", 8)
    c.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    dim = head_dim(c, hidden, heads)
    num_experts = c.count(alias(c, "num_local_experts", "num_experts"), 8)
    top_k = top_k_of(c, "num_experts_per_tok", num_experts, 2)
    inner, act = c.size("intermediate_size", 14336), activation(c, "hidden_act", "silu")
    does = c.behaviour
    attention = MaskedAttention(
        hidden, heads, kv_heads, dim, c.probability("attention_dropout"), qkv_bias=False, out_bias=False
    )
    experts = Experts(num_experts, hidden, inner, act)
    mlp: Module = SparseMLP(Router(hidden, num_experts, top_k, normalise=True, narrow=False), experts)
    name = "mlp"
    if does.experts == "linears":
        each = [Expert(hidden, inner, act, MIXTRAL_NAMES) for _ in range(num_experts)]
        mlp, name = LoopedMLP(hidden, each, top_k, normalise=True), "block_sparse_moe"
    num_layers = c.count("num_hidden_layers", 32)
    window = c.size("sliding_window") if c.get("sliding_window") is not None else None
    attention.caches = cached_heads(kv_heads, dim, heads, window)
    spec = decoder(
        c,
        [Block(attention, mlp, partial(RMSNorm, hidden), mlp_name=name)] * num_layers,
        partial(single_mask, window),
        model=DecoderStem(c.size("vocab_size", 32000), hidden, dim),
        default_length=131072,
        mlp_targets=("w1", "w2", "w3"),
        inactive_params=num_layers * inactive_weights(experts, top_k),
        former_linears=MIXTRAL_LINEARS if does.experts == "fused" else None,
    )
    spec.notes += router_notes(c)
    return spec
