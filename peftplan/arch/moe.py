"""Mixture-of-experts layers: routers, and experts kept as two tensors a layer.

Source: transformers 5.23 integrations/moe.py (grouped_mm_experts_forward, what a model runs unless told
otherwise: modeling_utils.get_correct_experts_implementation) and the routers of modeling_mixtral.py,
modeling_qwen2_moe.py, modeling_qwen3_moe.py.
"""

from __future__ import annotations

from peftplan.arch.config import Config
from peftplan.specs.formats import BF16, FP32, INT32
from peftplan.specs.modules import BareWeights, Ops
from peftplan.specs.tensors import Parameter, Tensor

# Linears of transformers 4 -> the parameter that holds their weights in 5: what peft 0.21 converts targets
# by (utils/transformers_weight_conversion.py): Mixtral, and the families loaded like Qwen2-MoE but not it.
MIXTRAL_LINEARS = {"gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
QWEN_LINEARS = {
    "gate": "gate.weight",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "down_proj": "down_proj",
}

# what a router hands on: logits, weights of the chosen experts, which they are
Routing = tuple[Tensor, Tensor, Tensor]


class Router(BareWeights):
    """Softmax over the experts, the best few of them, perhaps made to sum to one again."""

    def __init__(self, hidden: int, num_experts: int, top_k: int, normalise: bool, narrow: bool) -> None:
        super().__init__()
        self.top_k, self.normalise = top_k, normalise
        self.narrow = narrow  # whether the weights go back to the type of the logits
        self.weight = Parameter((num_experts, hidden), BF16)

    def forward(self, t: Ops, x: Tensor) -> Routing:  # type: ignore[override]
        logits = t.linear(x, self.weight_of(t, "weight"))
        probabilities = t.softmax(t.to(logits, FP32))
        weights, chosen = t.topk(probabilities, self.top_k)
        if self.normalise:
            weights = t.divide_(weights, t.sum_last(weights))
        if self.narrow:
            weights = t.to(weights, logits.dtype)
        return logits, weights, chosen


class Experts(BareWeights):
    """All experts of a layer: gate and up projections in one tensor [experts, 2 inner, hidden], down in one.

    Rows are sorted by expert and multiplied group by group, so sizes do not depend on the routing.
    """

    def __init__(self, num_experts: int, hidden: int, inner: int, activation: str) -> None:
        super().__init__()
        self.num_experts, self.hidden, self.inner, self.activation = num_experts, hidden, inner, activation
        self.gate_up_proj = Parameter((num_experts, 2 * inner, hidden), BF16)
        self.down_proj = Parameter((num_experts, hidden, inner), BF16)

    def forward(self, t: Ops, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:  # type: ignore[override]
        rows = chosen.numel
        weights = t.view(weights, (rows,))
        sorted_experts, order = t.integers((rows,), "sort"), t.integers((rows,), "sort")
        taken = t.rows(x, t.integers((rows,), "floor_divide"))
        taken_weights = t.rows(weights, order)
        counted = t.integers((rows,), "_to_copy", INT32)
        counts = t.integers((self.num_experts,), "histc", INT32)
        offsets = t.integers((self.num_experts,), "cumsum", INT32)
        weight = self.weight_of(t, "gate_up_proj")
        bias = self.bias_rows(t, "gate_up_proj_bias", sorted_experts)
        out = self.grouped_linear(t, taken, weight, bias, offsets, 2 * self.inner)
        out = self.gate(t, out)
        weight = self.weight_of(t, "down_proj")
        bias = self.bias_rows(t, "down_proj_bias", sorted_experts)
        out = self.grouped_linear(t, out, weight, bias, offsets, self.hidden)
        weighted = t.mul(out, t.view(taken_weights, (rows, 1)))
        inverse = t.integers((rows,), "empty_like")
        numbers = t.integers((rows,), "arange")
        del numbers
        weighted = t.rows(weighted, inverse)
        total = t.sum_groups(weighted, x.shape)
        del counted, counts
        return t.to(total, x.dtype)  # type: ignore[no-any-return]

    @staticmethod
    def grouped_linear(
        t: Ops, x: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor, columns: int
    ) -> Tensor:
        """Each row times its expert's matrix, in the type of the weights."""
        out = t.grouped_mm(t.to(x, weight.dtype), weight, offsets, columns)
        if bias is not None:
            out = t.add_(out, bias)
        return out  # type: ignore[no-any-return]

    def bias_rows(self, t: Ops, name: str, experts: Tensor) -> Tensor | None:
        """The bias of each row's expert; None where the family has none."""
        return None

    def gate(self, t: Ops, x: Tensor) -> Tensor:
        """act(gate) * up of the two halves."""
        half = (x.shape[0], self.inner)
        gate, up = t.split(x, (half, half))
        return t.mul(t.activation(gate, self.activation), up)  # type: ignore[no-any-return]


def top_k_of(c: Config, key: str, num_experts: int, default: int | None = None) -> int:
    """How many experts a token visits: at most as many as there are."""
    top_k = c.count(key, default)
    if top_k > num_experts:
        raise c.fail(key, top_k, f"at most the number of experts ({num_experts})")
    return top_k


def router_notes(c: Config) -> list[str]:
    """What a config asks of its router that the figures leave out."""
    notes = []
    if c.flag("output_router_logits"):
        notes.append(
            "output_router_logits adds the load-balancing loss; the router logits it keeps are not counted"
        )
    if c.number("router_jitter_noise", 0.0) > 0.0:
        notes.append("router_jitter_noise is not counted: one tensor of a layer's input while it runs")
    return notes


def inactive_weights(experts: Experts, top_k: int) -> int:
    """Weights of one layer's experts that a token does not visit."""
    per_expert = sum(p.numel for p in experts.parameters.values()) // experts.num_experts
    return per_expert * (experts.num_experts - top_k)
