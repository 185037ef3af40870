"""From a request to a job, without torch: the defaults and refusals of an estimate, for any model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftplan import Request, estimate
from peftplan.errors import BadInput, MachineLacks, NotFound, PeftplanError
from peftplan.measure.trace import plan as plans
from peftplan.measure.trace.configs import text_config, with_layers
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.peft_config import MAX_BYTES, read_peft_config
from peftplan.measure.trace.plan import plan_trace, target_modules

STRANGER = {"model_type": "stranger", "num_hidden_layers": 4, "n_positions": 300}


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_defaults_are_those_of_an_estimate(method: str) -> None:
    """Every field that is left open is filled in as the closed form fills it."""
    request = Request(model="llama-3-8b", method=method)
    assert plan_trace(request).request.model_dump() == estimate(request).request


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "nope"},
        {"model": "gpt2", "method": "lora", "precision": "bf16-master"},
        {"model": "gpt2", "method": "full", "quant": "nf4"},
        {"model": "gpt2", "kbit_prepare": True},
        {"model": "gpt2", "gpu": "nope"},
        {"model": "gpt2", "optimizer": "nope"},
        {"model": "gpt2", "use_reentrant": True, "checkpointing": False},
    ],
)
def test_refusals_are_those_of_an_estimate(fields: dict[str, Any]) -> None:
    """What contradicts itself is refused in the same words."""
    with pytest.raises(PeftplanError) as closed:
        estimate(Request(**fields))
    with pytest.raises(PeftplanError) as traced:
        plan_trace(Request(**fields))
    assert str(traced.value) == str(closed.value)
    assert type(traced.value) is type(closed.value)


def test_a_job_survives_its_json() -> None:
    """What the child reads is what was written."""
    job = plan_trace(Request(model="llama-3-8b", method="qlora")).job
    assert Job.from_json(job.to_json()) == job


def test_a_family_unknown_to_the_closed_form_is_planned() -> None:
    """The trace takes what transformers may know; the model's limit is read from the config."""
    plan = plan_trace(Request(model=STRANGER))
    assert plan.model is None
    assert plan.job.seq_len == 300
    assert "does not know model_type 'stranger'" in plan.notes()[0]


def test_a_config_that_the_closed_form_refuses_is_left_to_the_libraries() -> None:
    """The refusal is kept for the notes, and for when the libraries refuse too."""
    plan = plan_trace(Request(model={"model_type": "llama", "num_hidden_layers": 2, "hidden_act": "mish"}))
    assert plan.model is None
    assert plan.refusal
    assert plan.refused("transformers 5.23 rejects this") == plan.refusal
    assert plan.refused("something else") == ""


def test_the_closed_forms_words_are_found_for_bad_targets() -> None:
    """What peft refuses is said as the estimate says it."""
    plan = plan_trace(Request(model="gpt2", targets="nope"))
    assert "--targets nope names no module of gpt2" in plan.refused("peft 0.21 refuses this run: ...")


@pytest.mark.parametrize(
    ("targets", "taken"),
    [
        ("all-linear", "all-linear"),
        ("Attention", "attention"),
        ("q_proj, v_proj", ["q_proj", "v_proj"]),
        (["q_proj"], ["q_proj"]),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
    ],
)
def test_targets_are_words_lists_or_patterns(targets: Any, taken: Any) -> None:
    """Targets reach peft as the closed form reads them."""
    assert target_modules(targets) == taken


@pytest.mark.parametrize("targets", ["(", []])
def test_unusable_targets_are_refused(targets: Any) -> None:
    """No names, or a pattern that is none."""
    with pytest.raises(BadInput, match="--targets"):
        target_modules(targets)


def test_attention_and_mlp_stand_for_the_familys_names() -> None:
    """Fused projections have their own names, which the closed form knows."""
    job = plan_trace(Request(model="gpt2", targets="attention")).job
    assert job.attention_targets == ("c_attn", "attn.c_proj")


def test_two_micro_batches_stand_for_any_number() -> None:
    """The second finds the gradients of the first, and all later ones are like it."""
    assert plan_trace(Request(model="gpt2", grad_accum=64)).job.num_micro_steps == 2
    assert plan_trace(Request(model="gpt2")).job.num_micro_steps == 1


def test_any_name_may_be_a_method_of_peft() -> None:
    """A method that peftplan does not know freezes the base and goes by peft's defaults."""
    job = plan_trace(Request(model="gpt2", method="prefix-tuning")).job
    assert job.peft is not None
    assert job.peft["peft_type"] == "PREFIX_TUNING"
    assert (job.autocast, job.base_dtype) == ("bf16", "bf16")


def test_a_model_can_be_cut() -> None:
    """The first blocks only, with the lists that have an entry for each; the note says so."""
    plan = plan_trace(Request(model="gemma-2-2b"), layers=4)
    assert plan.job.config["num_hidden_layers"] == 4
    assert len(plan.job.config.get("layer_types") or [0] * 4) == 4
    assert "first 4 of 26 blocks" in plan.notes()[0]
    assert plan_trace(Request(model="gemma-2-2b"), layers=99).job.config["num_hidden_layers"] == 26


def test_lists_with_an_entry_for_each_block_are_cut() -> None:
    """Whatever a list is called, it belongs to the blocks if it is as long."""
    cut = with_layers({"num_hidden_layers": 4, "kinds": [1, 2, 3, 4], "other": [1, 2, 3]}, 2)
    assert cut == {"num_hidden_layers": 2, "kinds": [1, 2], "other": [1, 2, 3]}


def test_of_a_model_that_sees_the_text_tower_is_taken() -> None:
    """The language model's config is the inner one."""
    assert text_config({"model_type": "both", "text_config": {"model_type": "llama"}}) == {"model_type": "llama"}


@pytest.mark.parametrize("number", [0, -1, 1.5, True, 10**9])
def test_absurd_numbers_of_layers_are_refused(number: Any) -> None:
    """A damaged config is not handed on, whatever the family."""
    with pytest.raises(BadInput, match="num_hidden_layers"):
        plan_trace(Request(model={**STRANGER, "num_hidden_layers": number}))


def test_releases_other_than_the_installed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace cannot run a release that is not there; one that is may be named."""
    monkeypatch.setattr(plans, "installed_version", lambda name: "5.23.0+local")
    assert plan_trace(Request(model="gpt2", transformers="5.23")).job
    with pytest.raises(MachineLacks, match=r"--transformers 4\.46: the trace runs what is installed"):
        plan_trace(Request(model="gpt2", transformers="4.46"))


# ---- peft's own config files

LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "inference_mode": True}


def written(folder: Path, fields: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return path


def test_a_peft_config_stands_for_the_method(tmp_path: Path) -> None:
    """Its fields reach peft, the request tells them, and what only describes a saved adapter is left out."""
    fields = read_peft_config(written(tmp_path, LORA))
    plan = plan_trace(Request(model="gpt2", method="qlora"), fields)
    assert plan.job.peft == {name: LORA[name] for name in ("peft_type", "r", "lora_alpha", "target_modules")}
    assert (plan.request.rank, plan.request.alpha, plan.request.targets) == (4, 8, ["c_attn"])
    assert plan.job.quantization is not None
    assert read_peft_config(tmp_path) == fields


def test_a_peft_config_of_another_kind_names_the_method() -> None:
    """The base stays as the method asked for it: packed under qlora."""
    plan = plan_trace(Request(model="gpt2", method="qlora"), {"peft_type": "IA3"})
    assert plan.request.method == "ia3"
    assert plan.request.quant == "nf4"
    assert plan.request.kbit_prepare is True


def test_a_peft_config_contradicts_full_fine_tuning() -> None:
    """Adapters stand on a frozen base."""
    with pytest.raises(BadInput, match="--method full trains every weight"):
        plan_trace(Request(model="gpt2", method="full"), LORA)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ('{"peft_type": NaN}', "no JSON"),
        ("[]", "no peft_type"),
        ('{"r": 8}', "no peft_type"),
        (" " * (MAX_BYTES + 1), "has at most"),
    ],
)
def test_unusable_peft_configs_are_refused(tmp_path: Path, text: str, words: str) -> None:
    """A file that is no such config is refused with the option's name and the reason."""
    with pytest.raises(BadInput, match=f"^--peft-config.*{words}"):
        read_peft_config(written(tmp_path, text))


def test_a_missing_peft_config_is_not_found(tmp_path: Path) -> None:
    """A path that does not exist is exit status 4."""
    with pytest.raises(NotFound, match="--peft-config"):
        read_peft_config(tmp_path / "nope.json")
