"""DeepSeek-V2 and V3: latent attention, dense first layers, experts with shared ones beside them.

Source: transformers 5.23 modeling_deepseek_v2.py, modeling_deepseek_v3.py and their configuration files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from peftplan.arch.config import Config, activation, alias
from peftplan.arch.latent import (
    ComplexRotaryEmbedding,
    Latent,
    LatentAttention,
    rotate_complex,
    rotate_halves,
    rotate_interleaved,
)
from peftplan.arch.llama_like import DecoderStem, GatedMLP
from peftplan.arch.mixtral import single_mask
from peftplan.arch.moe import (
    QWEN_LINEARS,
    Experts,
    Routing,
    inactive_weights,
    router_notes,
    top_k_of,
)
from peftplan.arch.sparse_decoder import Block, decoder
from peftplan.specs.formats import BF16, BOOL, FP32
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import BareWeights, Module, Ops, RMSNorm
from peftplan.specs.tensors import Parameter, Tensor


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a generation's config class takes where a key is absent."""

    vocab: int
    hidden: int
    intermediate: int
    inner: int
    num_layers: int
    heads: int
    num_experts: int
    num_shared: int
    top_k: int | None
    num_dense: int
    length: int


DEFAULTS = {
    "deepseek_v2": Defaults(102400, 4096, 11008, 1407, 32, 32, 64, 2, None, 0, 2048),
    "deepseek_v3": Defaults(129280, 7168, 18432, 2048, 61, 128, 256, 1, 8, 3, 4096),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """How a router chooses: of all experts, or of the best groups of them only (`groups` is 0 then)."""

    num_experts: int
    top_k: int
    groups: int
    kept_groups: int
    normalise: bool = False


class LatentRouter(BareWeights):
    """A router that computes its logits in fp32."""

    def __init__(self, hidden: int, choice: Choice) -> None:
        super().__init__()
        self.choice = choice
        self.weight = Parameter((choice.num_experts, hidden), BF16)

    def logits(self, t: Ops, x: Tensor) -> Tensor:
        """Input and weight in fp32, multiplied (autocast: brought back to 16 bits first)."""
        x, weight = t.to(x, FP32), t.to(self.weight_of(t, "weight"), FP32)
        return t.linear(x, weight)  # type: ignore[no-any-return]

    def outside(self, t: Ops, group_scores: Tensor) -> tuple[Tensor, ...]:
        """Which experts are in no kept group, first, and what the router's locals hold beside it."""
        tokens, choice = group_scores.shape[0], self.choice
        values, groups = t.topk(group_scores, choice.kept_groups)
        del values
        kept = t.like(group_scores, "zeros_like")
        spread = t.new((tokens, choice.num_experts), tokens * choice.num_experts, FP32, "clone")
        inside = t.integers(spread.shape, "_to_copy", BOOL)
        mask = t.integers(spread.shape, "bitwise_not", BOOL)
        del inside
        return mask, groups, kept, spread


class SoftmaxRouter(LatentRouter):
    """V2's: softmax, the best of all or of the best groups; the weights stay in fp32."""

    def forward(self, t: Ops, x: Tensor) -> Routing:  # type: ignore[override]
        choice = self.choice
        logits = self.logits(t, x)
        scores = t.softmax(t.to(logits, FP32))
        if choice.groups:
            with t.no_grad():
                group_shape = (scores.shape[0], choice.groups)
                group_scores = t.new(group_shape, group_shape[0] * choice.groups, FP32, "max")
                where = t.integers(group_shape, "max")
                locals_ = self.outside(t, group_scores)
            scores = t.masked_fill(scores, locals_[0])
            del where
        weights, chosen = t.topk(scores, choice.top_k)
        weights = t.mul_scalar(weights)
        return logits, weights, chosen


class SigmoidRouter(LatentRouter):
    """V3's: sigmoid scores, chosen with a correction that no gradient reaches."""

    def __init__(self, hidden: int, choice: Choice) -> None:
        super().__init__(hidden, choice)
        self.e_score_correction_bias = Parameter((choice.num_experts,), FP32, role="buffer")

    def forward(self, t: Ops, x: Tensor) -> Routing:  # type: ignore[override]
        choice = self.choice
        logits = self.logits(t, x)
        scores = t.sigmoid(logits)
        with t.no_grad():  # what is only chosen by has a graph of its own, which goes with it
            corrected = t.add(scores, self.e_score_correction_bias)
            group_shape = (scores.shape[0], choice.groups, choice.num_experts // choice.groups)
            best, where = t.topk(t.view(corrected, group_shape), min(2, group_shape[2]))
            group_scores = t.view(t.sum_last(best), group_shape[:2])
            del best
            locals_ = self.outside(t, group_scores)
            corrected = t.masked_fill(corrected, locals_[0])
            values, chosen = t.topk(corrected, choice.top_k)
            del values
        weights = t.gather(scores, chosen)
        if choice.normalise:
            denominator = t.add_scalar(t.sum_last(weights))
            weights = t.divide_(weights, denominator)
        weights = t.mul_scalar(weights)
        del where, locals_
        return logits, weights, chosen


class SharedExpertsMLP(Module):
    """Experts, and beside them an MLP that every token visits."""

    def __init__(self, experts: Experts, gate: LatentRouter, shared: GatedMLP) -> None:
        super().__init__()
        self.experts = experts
        self.gate = gate
        self.shared_experts = shared

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        flat = t.view(x, (x.numel // x.shape[-1], x.shape[-1]))
        _logits, weights, chosen = t.call("gate", self.gate, flat)
        out = t.view(t.call("experts", self.experts, flat, chosen, weights), x.shape)
        out = t.add(out, t.call("shared_experts", self.shared_experts, x))
        return out  # type: ignore[no-any-return]


def latent(c: Config, hidden: int, default_heads: int) -> Latent:
    """The attention's widths; `q_lora_rank` null means that queries have no latent."""
    direct = "q_lora_rank" in c and c["q_lora_rank"] is None
    return Latent(
        hidden,
        c.count("num_attention_heads", default_heads),
        None if direct else c.size("q_lora_rank", 1536),
        c.size("kv_lora_rank", 512),
        c.size("qk_nope_head_dim", 128),
        c.size("qk_rope_head_dim", 64),
        c.size("v_head_dim", 128),
        c.flag("attention_bias"),
        c.probability("attention_dropout"),
    )


def choice(c: Config, d: Defaults, second: bool) -> Choice:
    """How many experts there are and how a token's are chosen."""
    key = alias(c, "n_routed_experts", "num_experts" if second else "num_local_experts")
    num_experts = c.count(key, d.num_experts)
    top_k = top_k_of(c, "num_experts_per_tok", num_experts, d.top_k)
    grouped = not second
    if second:
        method = c.word("topk_method", "greedy", ("greedy", "group_limited_greedy"))
        grouped = method == "group_limited_greedy"
    if not grouped:
        return Choice(num_experts, top_k, 0, 0)
    groups = c.count("n_group", None if second else 8)
    c.divides("n_group", groups, key, num_experts)
    kept = c.count("topk_group", None if second else 4)
    if kept > groups:
        raise c.fail("topk_group", kept, f"at most n_group ({groups})")
    return Choice(num_experts, top_k, groups, kept, not second and c.flag("norm_topk_prob", True))


def build(c: Config) -> ModelSpec:
    """A DeepSeek-V2 or V3, from its config."""
    second, d = c["model_type"] == "deepseek_v2", DEFAULTS[c["model_type"]]
    hidden, act = c.size("hidden_size", d.hidden), activation(c, "hidden_act", "silu")
    s, chosen = latent(c, hidden, d.heads), choice(c, d, second)
    rotation = rotate_interleaved if c.flag("rope_interleave", True) else rotate_halves
    attention = LatentAttention(s, rotate_complex if second else rotation)
    bias = second and c.flag("mlp_bias")
    inner = c.size("moe_intermediate_size", d.inner)
    experts = Experts(chosen.num_experts, hidden, inner, act)
    router = SoftmaxRouter(hidden, chosen) if second else SigmoidRouter(hidden, chosen)
    shared = GatedMLP(hidden, inner * c.count("n_shared_experts", d.num_shared), act, bias)
    norms = partial(RMSNorm, hidden)
    sparse = Block(attention, SharedExpertsMLP(experts, router, shared), norms)
    num_layers = c.count("num_hidden_layers", d.num_layers)
    num_dense = min(c.natural("first_k_dense_replace", d.num_dense), num_layers)
    blocks = [sparse] * (num_layers - num_dense)
    if num_dense:
        dense = GatedMLP(hidden, c.size("intermediate_size", d.intermediate), act, bias)
        first = LatentAttention(s, attention.rotation)
        blocks[:0] = [Block(first, dense, norms)] * num_dense
    model = DecoderStem(c.size("vocab_size", d.vocab), hidden, s.rotary_dim)
    if second:
        model.rotary_emb = ComplexRotaryEmbedding(s.rotary_dim)
    projections = ("q_proj",) if s.q_rank is None else ("q_a_proj", "q_b_proj")
    spec = decoder(
        c,
        blocks,
        partial(single_mask, None),
        model=model,
        default_length=d.length,
        attention_targets=(*projections, "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
        inactive_params=(num_layers - num_dense) * inactive_weights(experts, chosen.top_k),
        former_linears=QWEN_LINEARS,
    )
    spec.notes += router_notes(c)
    return spec
