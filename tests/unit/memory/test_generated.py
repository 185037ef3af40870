"""A run's own generation: what its cache and its passes come to, and where they are counted."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan import Request, estimate
from peftplan.memory.generated import before_a_step
from peftplan.planner import settle
from peftplan.resolve import resolve

LLAMA = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 6,
    "vocab_size": 4096,
    "max_position_embeddings": 4096,
}
LAYERS, KV_WIDTH = 6, 4 * 64


def grpo(**options: Any) -> Request:
    """A GRPO run of a small Llama under LoRA."""
    asked = {"micro_batch": 4, "prompt_len": 256, "completion_len": 256, "method": "lora", **options}
    return Request(model=LLAMA, style="grpo", **asked)


def test_the_cache_at_the_end_is_keys_and_values_of_all_but_the_last_token() -> None:
    """Two tensors a layer, of every sequence, in the type that attention gets: 16 bits under autocast."""
    settled = settle(resolve(grpo()))
    made = settled.account.generated
    assert made is not None
    assert made.cache_bytes(made.last) == LAYERS * 2 * 4 * (256 + 256 - 1) * KV_WIDTH * 2


def test_completions_of_all_micro_batches_are_generated_at_once() -> None:
    """Four micro-batches hold four times the cache of one, and no more of the trained step's activations."""
    one, four = estimate(grpo()).memory, estimate(grpo(grad_accum=4)).memory
    assert four.moments["generation"] > one.moments["generation"] + 2 * LAYERS * 3 * 4 * 511 * KV_WIDTH * 2 * 0.9
    assert four.activations_bytes == one.activations_bytes


def test_generation_can_be_the_peak_and_its_parts_sum_to_it() -> None:
    """Long completions of many sequences hold more than training on a few of them."""
    memory = estimate(grpo(micro_batch=1, grad_accum=64, completion_len=2048)).memory
    assert memory.peak_moment == "generation"
    assert memory.breakdown.bytes == memory.peak_allocated_bytes == memory.moments["generation"]
    assert sum(node.bytes for node in memory.breakdown.children) == memory.peak_allocated_bytes
    assert {"keys and values", "a pass of generation"} <= {node.name for node in memory.breakdown.children}
    assert memory.peak_reserved_bytes >= memory.peak_allocated_bytes


def test_styles_that_train_on_data_generate_nothing() -> None:
    """Without GRPO there is no such moment."""
    request = Request(model=LLAMA, method="lora", style="dpo", seq_len=64)
    plan = resolve(request)
    assert before_a_step(settle(plan).model, plan.step) is None
    assert "generation" not in estimate(request).memory.moments


def test_an_evaluation_that_generates_holds_a_cache() -> None:
    """A long generation behind short prompts holds more than the pass over them; a short one changes nothing."""
    request = Request(model=LLAMA, method="lora", micro_batch=4, seq_len=64)
    plain = estimate(request).memory
    short = estimate(request.model_copy(update={"eval_generate": 1})).memory
    long = estimate(request.model_copy(update={"eval_generate": 4000})).memory
    assert short.evaluation_peak_bytes == plain.evaluation_peak_bytes
    assert long.evaluation_peak_bytes - plain.evaluation_peak_bytes > LAYERS * 2 * 4 * 3900 * KV_WIDTH * 2 // 2
    assert long.moments == plain.moments


def test_an_evaluation_above_the_step_is_told() -> None:
    """Where generating needs more than training, and more positions than the model has, the answer says so."""
    request = Request(model=LLAMA, method="lora", seq_len=64)
    told = {n: estimate(request.model_copy(update={"eval_generate": n})) for n in (1, 10**6)}
    assert told[10**6].memory.evaluation_peak_bytes > told[10**6].memory.peak_allocated_bytes
    for words in ("more than a training step", "--eval-generate 1000000 make 1000064 positions"):
        assert any(words in note for note in told[10**6].notes)
        assert not any(words in note for note in told[1].notes)


def test_a_step_takes_the_seconds_of_its_generation() -> None:
    """Twice the completion takes more than twice the time of generating; the terms still sum to the step."""
    times = [estimate(grpo(completion_len=n, gpu="a100-80")).time for n in (256, 512)]
    assert all(time is not None and sum(time.terms.values()) == pytest.approx(time.step_s) for time in times)
    short, long = (time.terms["generation"] for time in times if time is not None)
    assert long > 1.9 * short
