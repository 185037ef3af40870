"""Work of a training step that was measured: what the played step counts, or a low count from its weights."""

from __future__ import annotations

from peftplan.cost.work import step_work
from peftplan.errors import PeftplanError
from peftplan.planner import settle
from peftplan.request import Request
from peftplan.resolve import resolve
from peftplan.specs.work import total_flop


def step_flop(request: Request) -> int | None:
    """Flop of one optimizer step that the GPU carries out, recomputed ones included; None of an unknown family."""
    try:
        plan = resolve(request)
        settled = settle(plan)
    except PeftplanError:
        return None
    return plan.request.grad_accum * total_flop(step_work(settled.model, plan.step, settled.account))


def least_flop(num_matmul: int, num_trained_matmul: int, num_tokens: int, recomputed: bool) -> int:
    """Flop of one step that matrix products with weights take, for models that only the trace knows.

    Forward and the gradient of the input take 2 per weight and token each; so does the gradient of a weight
    that trains, and the forward pass again where blocks are recomputed.

    Assumes: attention's own products, norms and activations count nothing, so the rate is a low one.
    Source: scaling-laws (section 2.1, table 1: 2N forward, twice that backward).
    """
    passes = 3 if recomputed else 2
    return 2 * num_tokens * (passes * num_matmul + num_trained_matmul)
