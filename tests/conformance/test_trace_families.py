"""Every family, traced through the real libraries, against the closed form: equal in bytes, moment by moment."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from peftplan import Request, estimate  # noqa: E402
from peftplan.arch import FAMILIES  # noqa: E402
from peftplan.catalog import find_model  # noqa: E402
from peftplan.errors import BadInput  # noqa: E402
from peftplan.measure.trace.account import activations_bytes, moments  # noqa: E402
from peftplan.measure.trace.configs import text_config, with_layers  # noqa: E402
from peftplan.measure.trace.plan import plan_trace  # noqa: E402
from peftplan.measure.trace.recording import Recording  # noqa: E402
from peftplan.measure.trace.replay import replay  # noqa: E402
from peftplan.measure.trace.runner import run  # noqa: E402

MIXED = {"checkpointing": False}  # lora and qlora are under autocast unless told otherwise
WHOLE = {"checkpointing": False, "precision": "bf16"}
EAGER = {"attention": "eager", "micro_batch": 3, "seq_len": 67}
ODD = {"micro_batch": 3, "seq_len": 67, "dropout": 0.05}

# a model of each family, how it is trained, and what is asked beside the defaults
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("google-bert/bert-base-uncased", "full", EAGER),
    ("google-bert/bert-base-uncased", "qlora", ODD),
    ("FacebookAI/roberta-base", "lora", MIXED),
    ("microsoft/deberta-v3-small", "qlora", ODD),
    ("google-t5/t5-small", "qlora", ODD),
    ("google/flan-t5-small", "full", WHOLE),
    ("meta-llama/Meta-Llama-3-8B", "full", {"precision": "bf16-mixed"}),
    ("meta-llama/Meta-Llama-3-8B", "qlora", {"precision": "bf16", "micro_batch": 3}),
    ("mistralai/Mistral-7B-v0.1", "lora", ODD),
    ("Qwen/Qwen2.5-0.5B", "qlora", {"quant": "int8", **ODD}),
    ("Qwen/Qwen3-8B", "full", EAGER),
    ("google/gemma-2b", "qlora", MIXED),
    ("google/gemma-2-2b", "full", {"precision": "fp32", "checkpointing": False}),
    ("google/gemma-3-1b-pt", "lora", ODD),
    ("google/gemma-3-4b-pt", "full", {}),
    ("microsoft/Phi-3-mini-4k-instruct", "qlora", EAGER),
    ("ibm-granite/granite-3.1-2b-base", "full", {"precision": "fp16-mixed"}),
    ("openai-community/gpt2", "qlora", ODD),
    ("bigcode/gpt_bigcode-santacoder", "qlora", ODD),
    ("EleutherAI/pythia-160m", "lora", EAGER),
    ("facebook/opt-125m", "lora", {**EAGER, "precision": "bf16", "adapter_dtype": "bf16"}),
    ("facebook/opt-350m", "qlora", {"quant": "int8", "kbit_prepare": True}),
    ("microsoft/phi-2", "qlora", MIXED),
    ("tiiuae/falcon-7b", "full", ODD | {"dropout": 0.0}),
    ("tiiuae/falcon-40b", "qlora", MIXED),
    ("tiiuae/falcon-rw-1b", "lora", {**EAGER, "targets": "attention"}),
    ("bigscience/bloom-560m", "lora", ODD),
    ("EleutherAI/gpt-j-6b", "qlora", EAGER),
    ("mistralai/Mixtral-8x7B-v0.1", "lora", {"checkpointing": False}),
    ("deepseek-ai/DeepSeek-V2-Lite", "qlora", {}),
    ("deepseek-ai/DeepSeek-V3", "full", WHOLE),
    ("openai/gpt-oss-20b", "full", {}),
    ("Qwen/Qwen1.5-MoE-A2.7B", "full", EAGER),
    ("Qwen/Qwen3-30B-A3B", "qlora", {"precision": "bf16"}),
]
# Enough blocks for one of each kind, where blocks differ.
LAYERS = {"google/gemma-3-1b-pt": 7, "google/gemma-3-4b-pt": 7, "deepseek-ai/DeepSeek-V3": 4}
# Kinds that the closed form does not know: decoders, sparse, recurrent, encoders, encoder with decoder.
OTHERS = ("stablelm", "cohere2", "olmoe", "mamba2", "modernbert", "electra", "bart")


def config_of(model: str) -> dict[str, Any]:
    """A catalogue model's config, cut to two blocks or a few."""
    record = find_model(model)
    assert record is not None
    return with_layers(text_config(record.config), LAYERS.get(model, 2))


def traced(config: dict[str, Any], method: str, **options: Any) -> tuple[Request, Recording]:
    """The run, and what the real libraries did in it."""
    request = Request(model=config, **{"seq_len": 128, "method": method, **options})
    return request, run(plan_trace(request).job, lambda *_: None)


def label(case: tuple[str, str, dict[str, Any]]) -> str:
    """Model and method."""
    return f"{case[0].split('/')[1]}-{case[1]}"


def test_every_family_has_a_case() -> None:
    """A family that peftplan comes to know is also traced."""
    assert {config_of(model)["model_type"] for model, _, _ in CASES} == set(FAMILIES)


@pytest.mark.parametrize("case", CASES, ids=label)
def test_the_closed_form_equals_the_trace_to_the_byte(case: tuple[str, str, dict[str, Any]]) -> None:
    """Every moment's allocated bytes, and what forward leaves alive, are the same in both engines."""
    model, method, options = case
    request, recording = traced(config_of(model), method, **options)
    memory = estimate(request).memory
    assert moments(recording, replay(recording)) == memory.moments
    assert activations_bytes(recording) == memory.activations_bytes


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures_are_traced_by_their_config_alone(kind: str) -> None:
    """What transformers can build runs a step, although peftplan has no closed form of it."""
    config = with_layers(transformers.CONFIG_MAPPING[kind]().to_dict(), 2)
    _, recording = traced(config, "full", seq_len=16)
    found = moments(recording, replay(recording))
    state = recording.facts["num_params"] * 2  # bf16
    assert found["loaded"] >= state
    assert found["optimizer_step"] >= 4 * state  # weights, gradients, two moments


def test_routing_that_is_read_is_balanced_and_said() -> None:
    """A layer that asks which tokens an expert gets is told an equal share, and the answer says so once."""
    config = with_layers(transformers.CONFIG_MAPPING["switch_transformers"]().to_dict(), 2)
    config |= {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    _, recording = traced(config, "full", seq_len=16)
    assert [note for note in recording.facts["notes"] if "balanced" in note] == [
        "routing is taken as balanced: each of 8 choices is made equally often"
    ]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("albert", "does not support activation checkpointing"),
        ("mllama_text_model", "no language model for model_type 'mllama_text_model'"),
        ("no_such_kind", "has no model_type 'no_such_kind'"),
    ],
)
def test_what_cannot_be_traced_is_refused_in_one_line(kind: str, words: str) -> None:
    """transformers' own verdict, or what is missing."""
    known = kind in transformers.CONFIG_MAPPING
    config = transformers.CONFIG_MAPPING[kind]().to_dict() if known else {"model_type": kind}
    with pytest.raises(BadInput, match=words):
        traced(config, "full", seq_len=16)
