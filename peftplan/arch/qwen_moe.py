"""Qwen's mixtures of experts, of the second and third generation.

Source: transformers 5.23 modeling_qwen2_moe.py, modeling_qwen3_moe.py and their configuration files.
"""

from __future__ import annotations

from copy import deepcopy

from peftplan.arch.config import Config, activation, alias, head_dim
from peftplan.arch.llama_like import Attention, GatedMLP, rotate_pair
from peftplan.arch.mixtral import SparseMLP
from peftplan.arch.moe import Experts, Router, inactive_weights, top_k_of
from peftplan.arch.rotary import Table
from peftplan.arch.sparse_decoder import Block, decoder, sparse_layers
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops, RMSNorm
from peftplan.specs.tensors import Tensor


class NormedAttention(Attention):
    """Attention whose queries and keys pass an RMSNorm over each head."""

    def __init__(self, hidden: int, heads: int, kv_heads: int, dim: int, bias: bool) -> None:
        super().__init__(hidden, heads, kv_heads, dim, bias, bias)
        self.q_norm = RMSNorm(dim)
        self.k_norm = RMSNorm(dim)

    def forward(self, t: Ops, x: Tensor, given: Table) -> Tensor:  # type: ignore[override]
        batch, length, _ = x.shape
        q, k = self._normed(t, "q", x, self.heads), self._normed(t, "k", x, self.kv_heads)
        v = t.view(t.call("v_proj", self.v_proj, x), (batch, self.kv_heads, length, self.dim))
        q, k = rotate_pair(t, q, k, given)
        out = t.view(t.attend(q, k, v), (batch, length, self.heads * self.dim))
        out = t.call("o_proj", self.o_proj, out)
        return out

    def _normed(self, t: Ops, role: str, x: Tensor, heads: int) -> Tensor:
        batch, length, _ = x.shape
        shape = (batch, heads, length, self.dim)
        projection, norm = self.children[role + "_proj"], self.children[role + "_norm"]
        return t.call(role + "_norm", norm, t.view(t.call(role + "_proj", projection, x), shape))  # type: ignore[no-any-return]


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
        logits, weights, chosen = t.call("gate", self.gate, flat)
        out = t.call("experts", self.experts, flat, chosen, weights)
        weight = t.sigmoid(t.call("shared_expert_gate", self.shared_expert_gate, flat))
        shared = t.mul(weight, shared)
        del weight
        out = t.add(out, shared)
        return t.view(out, shape)  # type: ignore[no-any-return]


def build(c: Config) -> ModelSpec:
    """A Qwen2-MoE or Qwen3-MoE, from its config."""
    second = c["model_type"] == "qwen2_moe"
    hidden, heads = c.size("hidden_size", 2048), c.count("num_attention_heads", 16 if second else 32)
    kv_heads = c.count("num_key_value_heads", 16 if second else 4)
    c.divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    dim = head_dim(c, hidden, heads)
    experts_key = alias(c, "num_experts", "num_local_experts")
    num_experts = c.count(experts_key, 60 if second else 128)
    top_k = top_k_of(c, "num_experts_per_tok", num_experts, 4 if second else 8)
    act = activation(c, "hidden_act", "silu")
    experts = Experts(
        num_experts, hidden, c.size("moe_intermediate_size", 1408 if second else 768), act
    )
    router = Router(hidden, num_experts, top_k, c.flag("norm_topk_prob"), narrow=True)
    dense = GatedMLP(hidden, c.size("intermediate_size", 5632 if second else 6144), act, False)
    attention: Attention
    sparse: Module
    if second:
        attention = Attention(hidden, heads, kv_heads, dim, c.flag("qkv_bias", True), False)
        shared = GatedMLP(hidden, c.size("shared_expert_intermediate_size", 5632), act, False)
        sparse = SharedExpertMLP(router, experts, shared, hidden)
    else:
        attention = NormedAttention(hidden, heads, kv_heads, dim, c.flag("attention_bias"))
        sparse = SparseMLP(router, experts)
    has_experts = sparse_layers(c, 24)
    blocks = {True: Block(hidden, attention, sparse), False: Block(hidden, deepcopy(attention), dense)}
    return decoder(
        c,
        [blocks[kind] for kind in has_experts],
        rotary_dim=dim,
        default_length=32768,
        mlp_targets=("gate_proj", "up_proj", "down_proj"),
        inactive_params=sum(has_experts) * inactive_weights(experts, top_k),
    )
