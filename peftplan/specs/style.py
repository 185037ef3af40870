"""A training style: what the rows of a batch are, which passes a step makes, and what its loss is made of."""

from __future__ import annotations

from dataclasses import dataclass

NEXT_TOKEN, CLASSIFICATION = "sft", "classification"


@dataclass(frozen=True, slots=True)
class StyleSpec:
    """A style's settings, resolved from a request; those that a style has no use for stand at their defaults.

    `rows`: rows of a forward pass for one that `micro_batch` counts (a pair is two). `reference`: what gives the
    log-probabilities that the policy is held against: none, adapter-off, model, precomputed. `completion_len`: the
    last tokens of a row, those that the policy has a say in.
    """

    name: str = NEXT_TOKEN
    rows: int = 1
    reference: str = "none"
    num_labels: int = 2
    completion_len: int = 0
    generates: bool = False  # its completions, before every step
    micro_batches: int = 1  # that a step's completions are generated for
    evaluation_tokens: int = 0  # generated behind each sequence of an evaluation


SFT = StyleSpec()
