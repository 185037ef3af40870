"""Work of a training step, counted low: what matrix products with weights take, and nothing else."""

from __future__ import annotations


def step_flop(num_matmul: int, num_trained_matmul: int, num_tokens: int, recomputed: bool) -> float:
    """Floating-point operations of one step that matrix products with weights take [flop].

    Forward and the gradient of the input take 2 per weight and token each; so does the gradient of a weight
    that trains, and the forward pass again where blocks are recomputed.

    Assumes: attention's own products, norms and activations count nothing, so the rate is a low one.
    Source: scaling-laws (section 2.1, table 1: 2N forward, twice that backward).
    """
    passes = 3 if recomputed else 2
    return 2.0 * num_tokens * (passes * num_matmul + num_trained_matmul)
