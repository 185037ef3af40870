"""Experts as transformers 4 keeps and runs them: linears of their own, visited one expert after the other.

How many tokens an expert gets is data; here, as in the trace, each gets as many as the next. Source:
transformers 4.57 modeling_mixtral.py (MixtralSparseMoeBlock), modeling_qwen2_moe.py, modeling_qwen3_moe.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from peftplan.specs.formats import BOOL, FP32
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor

MIXTRAL_NAMES, QWEN_NAMES = ("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj")
_REGISTERED = {MIXTRAL_NAMES: ("w1", "w2", "w3")}


class Expert(Module):
    """down(act(gate(x)) * up(x)), its linears under the family's names."""

    def __init__(self, hidden: int, inner: int, activation: str, names: tuple[str, str, str]) -> None:
        super().__init__()
        self.activation, self.names = activation, names
        for name in _REGISTERED.get(names, names):
            self.add(name, Linear(inner, hidden) if name == names[2] else Linear(hidden, inner))

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        gate, up, down = self.names
        product = t.mul(
            t.activation(t.call(gate, self.children[gate], x), self.activation), t.call(up, self.children[up], x)
        )
        return t.call(down, self.children[down], product)  # type: ignore[no-any-return]


class ExpertList(Module):
    """The experts of a layer, by number."""

    def __init__(self, experts: Sequence[Expert]) -> None:
        super().__init__()
        for number, expert in enumerate(experts):
            self.add(str(number), expert)


class LoopedMLP(Module):
    """A router that is a linear, and a loop over the experts, which add to one result; perhaps a shared expert."""

    def __init__(
        self, hidden: int, experts: Sequence[Expert], top_k: int, normalise: bool, shared: Module | None = None
    ) -> None:
        super().__init__()
        self.top_k, self.normalise = top_k, normalise
        self.gate = Linear(hidden, len(experts))
        self.experts = ExpertList(experts)
        self.shared_expert, self.shared_expert_gate = shared, None
        if shared is not None:
            self.shared_expert_gate = Linear(hidden, 1)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        shape = x.shape
        x = t.view(x, (x.numel // shape[-1], shape[-1]))
        logits = t.call("gate", self.gate, x)
        weights = t.softmax(t.to(logits, FP32))
        weights, chosen = t.topk(weights, self.top_k)
        if self.normalise:
            weights = t.divide_(weights, t.sum_last(weights))
        weights = t.to(weights, x.dtype)
        out = t.new(x.shape, x.numel, x.dtype, "zeros")
        out = self.visit(t, x, weights, chosen, out)
        if self.shared_expert is not None:
            shared = t.call("shared_expert", self.shared_expert, x)
            shared = t.mul(t.sigmoid(t.call("shared_expert_gate", self.shared_expert_gate, x)), shared)
            out = t.add(out, shared)
        return t.view(out, shape)  # type: ignore[no-any-return]

    def visit(self, t: Ops, x: Tensor, weights: Tensor, chosen: Tensor, out: Tensor) -> Tensor:
        """Every expert's share of the tokens, weighed and added; what the last one used lives to the end."""
        experts = self.experts.children
        num, picks = len(experts), chosen.numel
        mask = t.integers((*chosen.shape, num), "zeros")  # one_hot, scattered into
        hits = None
        if t.behaviour.visits_hit_experts:
            sums = t.integers((num,), "sum")
            hit = t.integers((num,), "gt", BOOL)
            del sums
            hits = t.integers((num, 1), "nonzero")
            del hit
        for number, expert in enumerate(experts.values()):
            tokens = picks // num + (number < picks % num)
            if not tokens and hits is not None:
                continue
            row = t.integers((1, picks), "index") if hits is not None else mask
            where = t.integers((tokens, 2), "nonzero")
            del row
            top_x = t.part(where, (tokens,))
            state = t.rows(x, top_x)
            current = t.call(f"experts.{number}", expert, state)
            current = t.mul(current, t.view(t.pick_rows(weights, top_x), (tokens, 1)))
            out = t.index_add_(out, top_x, t.to(current, x.dtype))
        return out
