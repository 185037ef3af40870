"""Every option of a run, traced through the real libraries, against the closed form: equal in bytes.

Two small models, a Llama with fewer heads of keys than of queries and a GPT-2, stand for the families, which
have tests of their own; here optimizers, recipes, packed bases, losses, loops and adapters vary. And every method
that peft has either runs or says in one line why not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from peftplan import Request, estimate
from peftplan.catalog import find_model
from peftplan.errors import BadInput
from peftplan.measure.trace.account import activations_bytes, moments, resident
from peftplan.measure.trace.configs import with_layers
from peftplan.measure.trace.plan import plan_trace
from peftplan.measure.trace.recording import Recording
from peftplan.measure.trace.replay import replay
from peftplan.measure.trace.runner import run
from peftplan.planner import settle
from peftplan.resolve import resolve

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
# Wide enough for what needs 256 values, and no wider.
SMALL = {
    **LLAMA,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "num_hidden_layers": 1,
}

MIXED_TYPES = {"modules_to_save": ["lm_head"], "targets": "attention"}

CASES: list[tuple[str, dict[str, Any]]] = [
    *(("full", {"optimizer": name}) for name in ("adamw", "adamw-fused", "adamw-8bit", "adafactor")),
    *(("lora", {"optimizer": name, **MIXED_TYPES}) for name in ("adafactor", "paged-adamw-8bit", "adamw")),
    # recipes
    *(("full", {"precision": name, "micro_batch": 2}) for name in ("fp16", "fp32", "bf16-mixed", "fp16-mixed")),
    *(("full", {"precision": "bf16-master", "optimizer": name}) for name in ("adamw", "sgd")),
    ("lora", {"base_dtype": "fp32", "adapter_dtype": "bf16", "precision": "bf16", "checkpointing": False}),
    ("qlora", {"base_dtype": "fp16", "adapter_dtype": "fp16", "precision": "fp16", **MIXED_TYPES}),
    # packed bases: block sizes, without a second quantisation, unprepared, few rows and many
    ("qlora", {"quant": "fp4", "quant_block_size": 32, "double_quant": False}),
    ("qlora", {"quant_block_size": 4096, "base_dtype": "fp32", "kbit_prepare": False}),
    ("qlora", {"quant": "int8", "checkpointing": False, "dropout": 0.1}),
    ("lora", {"quant": "int8", "grad_accum": 2, "bias": "lora_only", "kbit_prepare": False}),
    *(("qlora", {"seq_len": rows, "precision": "fp16", "gpu": "t4"}) for rows in (7, 60, 130)),
    # losses
    *(("full", {"loss": "fused", "precision": name}) for name in ("bf16", "bf16-mixed", "fp32")),
    ("lora", {"loss": "fused", "micro_batch": 2, "gpu": "t4"}),
    ("full", {"loss": "chunked", "micro_batch": 2, "seq_len": 9}),
    ("qlora", {"loss": "chunked", "checkpointing": False}),
    # loops
    ("full", {"grad_accum": 3, "checkpointing": False}),
    ("lora", {"grad_accum": 3}),
    ("full", {"loop": "trainer", "grad_accum": 3, "optimizer": "adamw-8bit"}),
    ("full", {"loop": "trainer", "optimizer": "adafactor", "precision": "fp16"}),
    ("lora", {"loop": "trainer", "loss": "chunked", **MIXED_TYPES}),
    ("qlora", {"loop": "trainer", "quant": "int8", "checkpointing": False}),
    # attention
    ("full", {"attention": "flash", "micro_batch": 3, "checkpointing": False}),
    ("qlora", {"attention": "flash", "padding": True, "micro_batch": 2}),
    ("lora", {"attention": "eager", "padding": True, "micro_batch": 2}),
    # adapters
    ("lora", {"targets": "mlp", "use_rslora": True, "bias": "all"}),
    ("lora", {"targets": r".*\.1\..*_proj", "rank": 600}),
    ("qlora", {"targets": "embed_tokens,lm_head,q_proj"}),
    ("lora", {"targets": "q_proj", "modules_to_save": ["embed_tokens", "norm"], "checkpointing": False}),
    # generations of GPUs
    *(("lora", {"gpu": name, "checkpointing": False}) for name in ("t4", "a40", "rtx-4090")),
    *(("full", {"gpu": name, "checkpointing": False}) for name in ("h100-sxm", "b200", "rtx-5090")),
]
GPT2_CASES: list[tuple[str, dict[str, Any]]] = [
    ("full", {"optimizer": "adafactor", "loop": "trainer"}),
    ("full", {"precision": "bf16-master", "optimizer": "lion"}),
    ("qlora", {"quant": "int8", "bias": "all", "checkpointing": False}),
    ("qlora", {"loss": "fused", "targets": "attention", "kbit_prepare": False}),
    ("lora", {"attention": "flash", "targets": "wte,c_attn"}),
]


def gpt2() -> dict[str, Any]:
    """GPT-2 with two blocks."""
    record = find_model("openai-community/gpt2")
    assert record is not None
    return with_layers(dict(record.config), 2)


def label(case: tuple[str, dict[str, Any]]) -> str:
    """Method and options."""
    return "-".join([case[0], *(f"{name}={value}" for name, value in case[1].items())])


def compared(config: dict[str, Any], method: str, options: dict[str, Any]) -> None:
    """Assert that moments, resident state and activations are the same to the byte in both engines."""
    request = Request(model=config, **{"method": method, "seq_len": 96, **options})
    recording = run(plan_trace(request).job, lambda *_: None)
    memory = estimate(request).memory
    assert moments(recording, replay(recording)) == memory.moments
    assert resident(recording) == memory.resident.model_dump()
    assert activations_bytes(recording) == memory.activations_bytes
    paged = settle(resolve(request)).account.resident.paged_bytes
    assert recording.facts["paged_bytes"] == paged


@pytest.mark.parametrize("case", CASES, ids=label)
def test_options_agree_with_the_trace_to_the_byte(case: tuple[str, dict[str, Any]]) -> None:
    """Whatever a run is told, both engines hold the same bytes at every moment."""
    compared(LLAMA, *case)


@pytest.mark.parametrize("case", GPT2_CASES, ids=label)
def test_options_of_a_family_with_biases_agree_to_the_byte(case: tuple[str, dict[str, Any]]) -> None:
    """Biases, a tied head and matrices the other way round change nothing about that."""
    compared(gpt2(), *case)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("full", {"attention": "flash", "precision": "fp32"}, "no fp32 kernels"),
        ("lora", {"attention": "flash", "gpu": "t4"}, "compute capability 8.0"),
        ("lora", {"loss": "fused", "targets": "q_proj,lm_head"}, "needs a plain output head"),
    ],
)
def test_what_the_libraries_cannot_run_both_refuse(method: str, options: dict[str, Any], words: str) -> None:
    """In one line, the same in both engines."""
    request = Request(model=LLAMA, **{"method": method, "seq_len": 32, **options})
    with pytest.raises(BadInput, match=words) as ours:
        estimate(request)
    with pytest.raises(BadInput, match=words) as traced:
        run(plan_trace(request).job, lambda *_: None)
    assert str(ours.value) == str(traced.value)


# ---- every method of peft

METHODS = sorted(str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING)
# What cannot run here, and words of the reason; with --no-checkpointing or not.
REFUSED = {
    "CARTRIDGE": "gradient checkpointing",
    "POLY": "gradient checkpointing",
    "PREFIX_TUNING": "gradient checkpointing",
    "XLORA": "trained already",
}
UNCHECKPOINTED = ("CARTRIDGE", "POLY", "PREFIX_TUNING")
# peft puts these on a packed base and lets them run.
ON_NF4 = ("ADALORA", "HIRA", "IA3", "OFT", "VERA")


def method_run(kind: str, **options: Any) -> Recording:
    """A step of a peft method at its own defaults."""
    request = Request(model=SMALL, **{"method": kind.lower(), "seq_len": 32, "rank": 8, **options})
    return run(plan_trace(request).job, lambda *_: None)


@pytest.mark.parametrize("kind", METHODS)
def test_every_peft_method_runs_or_says_in_one_line_why_not(kind: str) -> None:
    """Its own config class, filled from the request; trained tensors have gradients and optimizer states."""
    if kind in REFUSED:
        with pytest.raises(BadInput, match=REFUSED[kind]) as refusal:
            method_run(kind)
        assert "\n" not in str(refusal.value)
        if kind not in UNCHECKPOINTED:
            return
    recording = method_run(kind, checkpointing=kind not in UNCHECKPOINTED)
    state = resident(recording)
    trained = recording.facts["num_trainable_params"]
    assert 0 < trained < recording.facts["num_params"]
    assert state["gradients"] > 0
    assert 0 < state["optimizer_states"] <= 2 * state["gradients"]


@pytest.mark.parametrize("kind", ON_NF4)
def test_methods_that_know_packed_weights_run_on_them(kind: str) -> None:
    """peft tells a packed weight by its class, which a fake one has too."""
    dense, packed = method_run(kind), method_run(kind, quant="nf4", kbit_prepare=False)
    assert packed.facts["num_trainable_params"] == dense.facts["num_trainable_params"]
    assert resident(packed)["weights"] < resident(dense)["weights"]


def test_rank_and_targets_reach_other_methods_under_their_own_names() -> None:
    """Twice the rank is twice the parameters; one target of seven leaves the others alone."""
    for rank in (8, 16):
        assert method_run("MISS", rank=rank, targets="q_proj").facts["num_trainable_params"] == rank * 256


def test_an_initialisation_by_weights_is_replaced_and_said() -> None:
    """PiSSA factors the weights, which a trace has not: the adapters have the same shapes without."""
    plan = plan_trace(Request(model=SMALL, method="lora", seq_len=32))
    assert plan.job.peft is not None
    job = replace(plan.job, peft={**plan.job.peft, "init_lora_weights": "pissa"})
    plain, factored = run(plan.job, lambda *_: None), run(job, lambda *_: None)
    assert moments(factored, replay(factored)) == moments(plain, replay(plain))
    assert any("init_lora_weights='pissa'" in note for note in factored.facts["notes"])
