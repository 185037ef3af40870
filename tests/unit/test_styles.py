"""Training styles as a request states them: defaults, what they change of memory and time, what is said of them."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan import Request, estimate, sweep
from peftplan.planner import work_of
from peftplan.resolve import resolve
from peftplan.specs.work import total_flop

LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 8,
    "vocab_size": 2048,
    "max_position_embeddings": 2048,
}


def asked(**options: Any) -> Request:
    """A run of a small Llama under LoRA."""
    return Request(model=LLAMA, **{"method": "lora", "seq_len": 128, "micro_batch": 2, **options})


def test_a_request_without_a_style_is_next_token_training() -> None:
    """Nothing of the styles' fields is filled in, and nothing is said of them."""
    report = estimate(asked())
    fields = ("reference", "num_labels", "prompt_len", "completion_len", "num_generations")
    assert report.request["style"] == "sft"
    assert all(report.request[name] is None for name in fields)
    assert not any("reference" in note or "micro-batch counts" in note for note in report.notes)


@pytest.mark.parametrize(
    ("options", "filled"),
    [
        ({"style": "dpo"}, {"reference": "adapter-off", "completion_len": 64, "prompt_len": 64}),
        ({"style": "dpo", "method": "full"}, {"reference": "model"}),
        ({"style": "kto"}, {"reference": "adapter-off", "completion_len": None}),
        ({"style": "orpo"}, {"reference": None}),
        ({"style": "grpo", "prompt_len": 100}, {"reference": None, "completion_len": 28, "num_generations": 2}),
        ({"style": "grpo", "micro_batch": 12}, {"num_generations": 6}),
        ({"style": "grpo", "seq_len": None, "prompt_len": 30, "completion_len": 70}, {"seq_len": 100}),
        ({"style": "classification"}, {"num_labels": 2}),
    ],
)
def test_what_is_left_out_is_filled_in(options: dict[str, Any], filled: dict[str, Any]) -> None:
    """Each style has its own defaults, which the answer shows."""
    request = resolve(asked(**options)).request
    assert {name: getattr(request, name) for name in filled} == filled


def test_a_pair_is_two_rows() -> None:
    """One pair has as many tokens in a step as two sequences, and holds about as much of the blocks."""
    pair, two = estimate(asked(style="orpo", micro_batch=1, gpu="a100-80")), estimate(asked(gpu="a100-80"))
    assert pair.time is not None
    assert two.time is not None
    assert pair.time.tokens_per_s * pair.time.step_s == pytest.approx(two.time.tokens_per_s * two.time.step_s)
    assert pair.memory.resident == two.memory.resident


def test_a_reference_costs_a_forward_pass_or_a_second_model() -> None:
    """Flop: those of one pass without adapters; memory: none of the state, or the base once more."""
    precomputed, off, model = (
        asked(style="dpo", reference=name) for name in ("precomputed", "adapter-off", "model")
    )
    forward = sum(row.num_flop * row.count for row in work_of(precomputed) if row.phase == "forward")
    more = total_flop(work_of(off)) - total_flop(work_of(precomputed))
    assert 0.9 * forward < more < forward
    states = [estimate(request).memory.resident for request in (precomputed, off, model)]
    assert states[0] == states[1]
    base = states[0].weights
    assert states[2].weights - base == pytest.approx(base, rel=0.01)


def test_full_fine_tuning_counts_its_reference_among_the_weights() -> None:
    """The second model trains nothing: gradients and optimizer states are those of one."""
    alone, beside = (
        estimate(asked(style="dpo", method="full", reference=name)) for name in ("precomputed", "model")
    )
    assert beside.memory.resident.gradients == alone.memory.resident.gradients
    assert beside.memory.resident.optimizer_states == alone.memory.resident.optimizer_states
    assert beside.memory.resident.weights == 2 * alone.memory.resident.weights
    assert beside.method == alone.method


def test_a_batch_without_padding_needs_no_mask_under_flash() -> None:
    """Under sdpa one row of all tokens has a mask of their square; the package's kernel takes where they begin."""
    masked = estimate(asked(padding_free=True, micro_batch=8, checkpointing=False)).memory
    ragged = estimate(asked(padding_free=True, micro_batch=8, checkpointing=False, attention="flash")).memory
    whole = estimate(asked(micro_batch=8, checkpointing=False, attention="flash")).memory
    assert masked.activations_bytes > ragged.activations_bytes + (8 * 128) ** 2
    assert abs(ragged.activations_bytes - whole.activations_bytes) < 0.01 * whole.activations_bytes


@pytest.mark.parametrize("style", ["classification", "dpo", "orpo", "kto", "grpo"])
def test_a_sweep_gives_the_figures_of_an_estimate(style: str) -> None:
    """Steps of one kind are played together where they can be, and one by one where they cannot."""
    request = asked(style=style, micro_batch=2, gpu="a100-80")
    lengths = [64, 96, 160, 161]
    report = sweep(request, {"seq_len": lengths})
    for length, row in zip(lengths, report.rows):
        alone = estimate(request.model_copy(update={"seq_len": length}))
        assert row.memory is not None
        assert row.time is not None
        assert alone.time is not None
        assert row.memory.moments == alone.memory.moments
        assert row.memory.peak_reserved_bytes == alone.memory.peak_reserved_bytes
        assert row.time.step_s == pytest.approx(alone.time.step_s)


def test_a_style_says_what_it_takes_for_granted() -> None:
    """Pairs, references, whole logits, what generates: each has its note."""
    said = " ".join(estimate(asked(style="dpo")).notes)
    assert "counts pairs" in said
    assert "adapters off" in said
    assert "TRL 1.4" in said
    assert "vLLM" in " ".join(estimate(asked(style="grpo")).notes)
    assert "1,024 x 1,024" in " ".join(estimate(asked(padding_free=True, micro_batch=8)).notes)
