"""Training styles, traced through the real libraries, against the closed form: equal in bytes.

Two small models stand for the families: a Llama with fewer heads of keys than of queries, and a GPT-2, whose head
is tied to its embeddings and which drops values out.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from peftplan import Request, estimate
from peftplan.catalog import find_model
from peftplan.errors import BadInput
from peftplan.measure.trace.account import activations_bytes, breakdown, moments, peak_event, resident
from peftplan.measure.trace.configs import with_layers
from peftplan.measure.trace.plan import plan_trace
from peftplan.measure.trace.replay import replay
from peftplan.measure.trace.runner import run

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def small(name: str) -> dict[str, Any]:
    """A model of the catalogue with two blocks."""
    record = find_model(name)
    assert record is not None
    return with_layers(dict(record.config), 2)


MODELS = {"llama": LLAMA, **{name: small(name) for name in ("gpt2", "bert-base-uncased", "roberta-base")}}


def compared(model: str, options: dict[str, Any]) -> None:
    """Assert that moments, resident state and activations are the same to the byte in both engines."""
    request = Request(model=MODELS[model], **{"seq_len": 96, **options})
    recording = run(plan_trace(request).job, lambda *_: None)
    memory = estimate(request).memory
    assert moments(recording, replay(recording)) == {n: b for n, b in memory.moments.items() if n != "generation"}
    assert resident(recording) == memory.resident.model_dump()
    assert activations_bytes(recording) == memory.activations_bytes


def label(case: tuple[str, dict[str, Any]]) -> str:
    """Model and options."""
    return "-".join([case[0], *(f"{name}={value}" for name, value in case[1].items())])


CLASSIFICATION = [
    ("llama", {"method": "lora", "micro_batch": 3}),
    ("llama", {"method": "lora", "checkpointing": False, "num_labels": 1}),
    ("llama", {"method": "qlora", "micro_batch": 2, "num_labels": 5, "loop": "trainer", "grad_accum": 2}),
    ("llama", {"method": "ia3", "micro_batch": 2, "modules_to_save": ["embed_tokens"]}),
    ("gpt2", {"method": "full", "micro_batch": 2}),
    ("gpt2", {"method": "lora", "micro_batch": 2, "num_labels": 1, "padding": True}),
    ("bert-base-uncased", {"method": "full", "micro_batch": 3, "num_labels": 3}),
    ("bert-base-uncased", {"method": "lora", "micro_batch": 2, "loop": "trainer", "num_labels": 1}),
    ("roberta-base", {"method": "lora", "micro_batch": 3, "padding": True}),
]


@pytest.mark.parametrize("case", CLASSIFICATION, ids=label)
def test_a_score_head_agrees_with_the_trace_to_the_byte(case: tuple[str, dict[str, Any]]) -> None:
    """AutoModelForSequenceClassification, its head saved whole beside adapters, holds what the closed form says."""
    compared(case[0], {"style": "classification", **case[1]})


def test_what_has_no_score_head_is_refused() -> None:
    """transformers has no sequence classifier of Granite's: neither engine makes one up."""
    request = Request(model="granite-3.1-8b", style="classification", method="lora")
    with pytest.raises(BadInput, match="score head"):
        estimate(request)


PADDING_FREE = [
    ("llama", {}),
    ("llama", {"attention": "flash", "checkpointing": False}),
    ("llama", {"attention": "flash", "loop": "trainer", "grad_accum": 2}),
    ("llama", {"attention": "eager"}),
    ("llama", {"micro_batch": 1, "attention": "flash"}),
    ("gpt2", {}),
    ("gpt2", {"attention": "flash", "checkpointing": False}),
    ("gpt2", {"method": "full", "attention": "eager"}),
]


@pytest.mark.parametrize("case", PADDING_FREE, ids=label)
def test_a_batch_without_padding_agrees_with_the_trace_to_the_byte(case: tuple[str, dict[str, Any]]) -> None:
    """One row of three sequences: a mask of the whole row under sdpa, the kernel for ragged batches under flash."""
    compared(case[0], {"method": "lora", "padding_free": True, "micro_batch": 3, "seq_len": 40, **case[1]})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"padding": True}, "--padding asks for it"),
        ({"style": "classification"}, "needs a row for each sequence"),
        ({"method": "prompt-tuning"}, "virtual tokens"),
        ({"model": "facebook/opt-350m"}, "opt is handed none"),
        ({"transformers": "4.46"}, "from 4.53 on"),
        ({"model": "bert-base-uncased", "style": "dpo", "padding_free": False, "seq_len": 64}, "bert is none"),
        (
            {"model": "bert-base-uncased", "style": "classification", "padding_free": False, "method": "qlora"},
            "leave --quant out",
        ),
        ({"num_labels": 3}, "--num-labels is of --style classification"),
        ({"style": "classification", "padding_free": False, "loss": "fused"}, "leave --loss out"),
        ({"style": "classification", "padding_free": False, "method": "prompt-tuning"}, "virtual tokens"),
        ({"style": "dpo", "padding_free": False, "method": "full", "reference": "adapter-off"}, "no adapters"),
        ({"style": "dpo", "padding_free": False, "seq_len": 8, "completion_len": 8}, "no token"),
        ({"reference": "model"}, "--reference is of --style dpo, kto"),
        ({"style": "kto", "padding_free": False}, "give 2 or more"),
        ({"style": "grpo", "padding_free": False}, "give --micro-batch 2 or more"),
        ({"style": "grpo", "padding_free": False, "micro_batch": 6, "num_generations": 4}, "does not divide the 6"),
        ({"style": "grpo", "padding_free": False, "micro_batch": 2, "reference": "precomputed"}, "as it trains"),
        (
            {
                "style": "grpo",
                "padding_free": False,
                "micro_batch": 2,
                "seq_len": 9,
                "prompt_len": 4,
                "completion_len": 4,
            },
            "make 8 tokens",
        ),
    ],
)
def test_contradictions_are_refused_in_a_line(options: dict[str, Any], words: str) -> None:
    """What a style, a batch or a model cannot have beside another is said, with the remedy."""
    request = Request(**{"model": LLAMA, "method": "lora", "padding_free": True, **options})
    with pytest.raises(BadInput, match=words) as refused:
        estimate(request)
    assert "\n" not in str(refused.value)


DPO = [
    ("llama", {"reference": "precomputed", "precision": "bf16", "checkpointing": False}),
    ("llama", {"checkpointing": False}),
    ("llama", {"loop": "trainer", "micro_batch": 1, "completion_len": 7}),
    ("llama", {"method": "qlora", "grad_accum": 2}),
    ("llama", {"method": "qlora", "reference": "model", "loop": "trainer"}),
    ("llama", {"method": "full", "precision": "bf16-mixed", "loop": "trainer"}),
    ("llama", {"method": "dora", "attention": "eager", "adapter_dtype": "bf16"}),
    ("llama", {"attention": "flash", "modules_to_save": ["lm_head"]}),
    ("gpt2", {"loop": "trainer", "checkpointing": False, "dropout": 0.1}),
    ("gpt2", {"method": "full", "reference": "precomputed", "use_reentrant": True}),
]
ORPO = [
    ("llama", {"precision": "bf16", "checkpointing": False}),
    ("llama", {"loop": "trainer", "method": "qlora"}),
    ("llama", {"loop": "trainer", "micro_batch": 1, "checkpointing": False}),
    ("gpt2", {"method": "full", "loop": "trainer", "grad_accum": 2}),
]
KTO = [
    ("llama", {"micro_batch": 3, "checkpointing": False}),
    ("llama", {"loop": "trainer", "reference": "precomputed"}),
    ("llama", {"method": "qlora", "grad_accum": 2, "reference": "model"}),
    ("gpt2", {"method": "full", "loop": "trainer", "grad_accum": 2, "micro_batch": 3}),
]


@pytest.mark.parametrize("case", DPO, ids=label)
def test_pairs_against_a_reference_agree_with_the_trace_to_the_byte(case: tuple[str, dict[str, Any]]) -> None:
    """DPO with its adapters off, with a second model, with numbers computed before; logits in 16 and 32 bits."""
    compared(case[0], {"method": "lora", "style": "dpo", "micro_batch": 2, "seq_len": 40, **case[1]})


@pytest.mark.parametrize("case", ORPO, ids=label)
def test_odds_of_pairs_agree_with_the_trace_to_the_byte(case: tuple[str, dict[str, Any]]) -> None:
    """ORPO's two losses of the same logits hold what the closed form says."""
    compared(case[0], {"method": "lora", "style": "orpo", "micro_batch": 2, "seq_len": 40, **case[1]})


@pytest.mark.parametrize("case", KTO, ids=label)
def test_single_completions_agree_with_the_trace_to_the_byte(case: tuple[str, dict[str, Any]]) -> None:
    """KTO's four passes, and the logits that it keeps for metrics, hold what the closed form says."""
    compared(case[0], {"method": "lora", "style": "kto", "micro_batch": 2, "seq_len": 40, **case[1]})


GRPO = [
    ("llama", {"precision": "bf16", "checkpointing": False, "completion_len": 16}),
    ("llama", {"reference": "adapter-off", "loop": "trainer"}),
    ("llama", {"loop": "trainer", "micro_batch": 3, "padding": True, "prompt_len": 24}),
    ("llama", {"method": "qlora", "grad_accum": 2, "reference": "model"}),
    ("llama", {"method": "full", "loop": "trainer", "grad_accum": 2}),
    ("gpt2", {"method": "full", "grad_accum": 2, "reference": "model"}),
]


@pytest.mark.parametrize("case", GRPO, ids=label)
def test_generated_completions_are_scored_as_in_the_trace(case: tuple[str, dict[str, Any]]) -> None:
    """GRPO's passes over prompts and completions, with and without a reference, agree to the byte."""
    compared(case[0], {"method": "lora", "style": "grpo", "micro_batch": 2, "seq_len": 40, **case[1]})


def test_reserved_memory_of_many_blocks_follows_the_passes_without_a_graph() -> None:
    """Of a deep model the reference's blocks are left out as the policy's are, and put back for the allocator."""
    request = Request(
        model={**LLAMA, "num_hidden_layers": 12},
        method="lora",
        style="dpo",
        micro_batch=2,
        seq_len=64,
        loop="trainer",
    )
    recording = run(plan_trace(request).job, lambda *_: None)
    memory = estimate(request).memory
    assert abs(replay(recording).segments.reserved.num_bytes - memory.peak_reserved_bytes) <= 2 * 2**21


@pytest.mark.parametrize("style", ["classification", "dpo", "orpo", "kto", "grpo"])
def test_the_parts_of_the_peak_agree_with_the_trace(style: str) -> None:
    """What a loss computes outside the model counts as activations in both engines, until forward has ended."""
    request = Request(model=LLAMA, method="lora", style=style, micro_batch=2, seq_len=64)
    recording = run(plan_trace(request).job, lambda *_: None)
    traced = breakdown(recording, *peak_event(recording, replay(recording)))
    closed = estimate(request).memory.breakdown
    assert {n.name: n.bytes for n in traced.children} == {n.name: n.bytes for n in closed.children if n.bytes}
