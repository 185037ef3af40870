"""The registry of methods: what follows from it, options of one method alone, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import peftplan
from peftplan import Request, estimate
from peftplan.errors import BadInput
from peftplan.measure.trace.plan import plan_trace
from peftplan.methods import METHODS, SHARED
from peftplan.resolve import resolve

PACKAGE = Path(peftplan.__file__).parent
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
INPUTS = {"q": 64, "k": 64, "v": 64, "o": 64, "gate": 64, "up": 64, "down": 160}
OUTPUTS = {"q": 64, "k": 32, "v": 32, "o": 64, "gate": 160, "up": 160, "down": 64}
INITIALISED = {
    "pissa": "weights",
    "olora": "weights",
    "loftq": "weights",
    "eva": "inputs",
    "corda": "inputs",
    "lora-ga": "gradients",
}
TOY = '''
"""A method made up: every target's output is scaled by trained numbers."""

from typing import Annotated

from pydantic import Field

from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter
from peftplan.specs.modules import Module


class ToyOptions(Options):
    """How much is scaled."""

    sets: Annotated[int, Field(ge=1, le=4, description="sets of trained numbers")] = 2


class Toy(Module):
    """base(x) * numbers."""

    def __init__(self, base, sets, dtype):
        super().__init__()
        self.base_layer = base
        self.numbers = adapter((sets, base.out_features), dtype)

    def forward(self, t, x):
        result = t.call("base_layer", self.base_layer, x)
        return t.to(t.mul(result, t.part(self.numbers, (result.shape[-1],))), result.dtype)


def apply(model, method):
    """Freeze the base and scale the targets."""
    adapt(model, method, lambda base: Toy(base, method.options.sets, method.adapter_dtype))


METHODS = (Method("toy", "trained numbers scale outputs", "lora", apply, options=ToyOptions),)
'''


def asked(**options: Any) -> Request:
    """A request for the small model."""
    return Request(model=LLAMA, **{"seq_len": 32, **options})


def trained(**options: Any) -> int:
    """How many parameters train."""
    return estimate(asked(**options)).method.num_trainable_params


# ---- the registry


def with_toy(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line of a copy of the package."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "NO_COLOR": "1"}
    line = [sys.executable, "-m", "peftplan", *words]
    return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=folder, check=False)


def test_one_file_and_one_line_add_a_method(tmp_path: Path) -> None:
    """Parsing, choices, options with their bounds, the list, the ranking and shell completion follow from them."""
    shutil.copytree(PACKAGE, tmp_path / "peftplan", ignore=shutil.ignore_patterns("__pycache__"))
    methods = tmp_path / "peftplan" / "methods"
    (methods / "toy.py").write_text(TOY, encoding="utf-8")
    union = methods / "__init__.py"
    text = union.read_text(encoding="utf-8")
    union.write_text(text.replace("FILES = (\n", 'FILES = (\n    "toy",\n'), encoding="utf-8")

    done = with_toy(tmp_path, "estimate", "gpt2", "--method", "toy", "--method-option", "sets=3", "--json")
    answer = json.loads(done.stdout)
    outputs = 12 * (3 * 768 + 768 + 3072 + 768)
    assert answer["method"]["num_trainable_params"] == 3 * outputs
    assert answer["request"]["method_options"] == {"sets": 3}
    listed = {row["name"]: row for row in json.loads(with_toy(tmp_path, "methods", "--json").stdout)["rows"]}
    assert listed["toy"]["options"] == ["sets: sets of trained numbers; default 2"]
    assert "toy" in with_toy(tmp_path, "compare", "gpt2", "--methods", "all", "--plain").stdout
    refused = with_toy(tmp_path, "estimate", "gpt2", "--method", "toy", "--method-option", "sets=5")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "sets=5 is not allowed; it should be less than or equal to 4" in refused.stderr


def test_names_and_facts_are_complete() -> None:
    """Every method says what it does, what it takes, how it is merged and what it costs afterwards."""
    for name, method in METHODS.items():
        assert name == method.name == name.lower()
        assert set(method.takes) <= set(SHARED)
        assert method.summary
        assert method.merging
        assert method.inference


def test_every_name_is_traced_as_peft_knows_it() -> None:
    """What peft has is traced by its config; what it has not, by the weights that train."""
    for name, method in METHODS.items():
        if name in ("houlsby", "pfeiffer"):
            with pytest.raises(BadInput, match="peft has no such method"):
                plan_trace(asked(method=name))
            continue
        job = plan_trace(asked(method=name)).job
        assert (job.peft is None) == (not method.peft)
        if job.peft is not None:
            assert method.peft.items() <= job.peft.items()


# ---- parameter counts


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"method": "lora-fa", "rank": 4}, 3 * 4 * sum(OUTPUTS.values())),
        (
            {"method": "dora", "rank": 4},
            3 * (4 * (sum(INPUTS.values()) + sum(OUTPUTS.values())) + sum(OUTPUTS.values())),
        ),
        (
            {"method": "adalora", "rank": 4},  # it starts with half as much again
            3 * 6 * (sum(INPUTS.values()) + sum(OUTPUTS.values()) + len(INPUTS)),
        ),
        ({"method": "ia3"}, 3 * (32 + 32 + 160)),
        ({"method": "vera"}, 3 * (256 * len(OUTPUTS) + sum(OUTPUTS.values()))),
        ({"method": "loha", "rank": 4}, 2 * 3 * 4 * (sum(INPUTS.values()) + sum(OUTPUTS.values()))),
        ({"method": "lokr", "rank": 4, "targets": "down_proj"}, 3 * (8 * 10 + 4 * (8 + 16))),
        ({"method": "miss", "rank": 4}, 3 * 4 * sum(OUTPUTS.values())),
        ({"method": "oft", "targets": "down_proj"}, 3 * (160 // 32) * 32 * 31 // 2),
        ({"method": "ln-tuning"}, (2 * 3 + 1) * 64),
        ({"method": "partial", "targets": "o_proj"}, 3 * 64 * 64),
        ({"method": "prompt-tuning"}, 20 * 64),
        ({"method": "p-tuning"}, 20 * 64 + 3 * (64 * 64 + 64)),
        ({"method": "prefix-tuning", "checkpointing": False}, 20 * 3 * 2 * 32),
        ({"method": "trainable-tokens"}, 16 * 64),
        ({"method": "adaption-prompt"}, 3 * (10 * 64 + 1)),
        (
            {"method": "adaption-prompt", "method_options": {"adapter_layers": 2, "adapter_len": 4}},
            2 * (4 * 64 + 1),
        ),
        ({"method": "fourierft"}, 3 * 7 * 1000),
        ({"method": "boft", "targets": "down_proj"}, 3 * (160 // 4 * 4 * 4 + 64)),
        ({"method": "hra", "rank": 4}, 3 * 4 * sum(INPUTS.values())),
        ({"method": "road", "method_options": {"group_size": 32}}, 3 * sum(OUTPUTS.values())),
        (
            {"method": "road", "method_options": {"variant": "road_4", "group_size": 32}},
            3 * 4 * sum(OUTPUTS.values()),
        ),
        ({"method": "c3a", "method_options": {"block_size": 32}, "targets": "k_proj"}, 3 * 64 * 32 // 32),
        ({"method": "randlora", "rank": 5, "targets": "k_proj"}, 3 * (5 * 7 + 7 * 32)),
        ({"method": "shira", "rank": 4}, 3 * 4 * (sum(INPUTS.values()) + sum(OUTPUTS.values()))),
        (
            {"method": "vblora", "targets": "k_proj", "method_options": {"vector_length": 16, "num_vectors": 9}},
            3 * 4 * (64 + 32) // 16 * 9 + 9 * 16,
        ),
        ({"method": "gralora", "rank": 4}, 3 * 4 * (sum(INPUTS.values()) + sum(OUTPUTS.values()))),
        (
            {"method": "delora", "rank": 4},
            3 * (4 * (sum(INPUTS.values()) + sum(OUTPUTS.values())) + len(INPUTS)),
        ),
        ({"method": "pvera", "rank": 4}, 3 * (2 * 4 * len(OUTPUTS) + sum(OUTPUTS.values()))),
        ({"method": "tinylora"}, 3 * 7 * 64),
        ({"method": "tinylora", "method_options": {"weight_tying": 1.0, "u": 13}}, 13),
        ({"method": "unilora"}, 256),
        ({"method": "hira", "rank": 4}, 3 * 4 * (sum(INPUTS.values()) + sum(OUTPUTS.values()))),
        ({"method": "psoft"}, 3 * 7 * (32 * 31 // 2 + 2 * 32)),
        ({"method": "waveft", "method_options": {"n_frequency": 500}}, 3 * 7 * 500),
        ({"method": "mica", "rank": 4}, 3 * 4 * sum(INPUTS.values())),
        ({"method": "bdlora", "rank": 4, "targets": "down_proj"}, 3 * 4 * (160 // 2 + 64)),
        (
            {"method": "miss", "rank": 4, "method_options": {"init_weights": "bat"}},
            3 * 4 * sum(OUTPUTS.values()),
        ),
        ({"method": "houlsby"}, 3 * 2 * (2 * 64 * 64 + 64 + 64)),
        (
            {"method": "lily", "rank": 4, "targets": "mlp", "method_options": {"stride_A": 2}},
            2 * 4 * (64 + 64 + 160) + 2 * 4 * (160 + 160 + 64) + 3 * 3 * 2 * 4,  # two A, one B, a router each
        ),
        (
            {"method": "peanut", "rank": 4, "method_options": {"depth": 1}},
            3 * (2 * 4 * sum(OUTPUTS.values()) + 7 * 32),
        ),
        ({"method": "deft", "rank": 4}, 3 * 4 * (sum(INPUTS.values()) + sum(OUTPUTS.values()))),
        ({"method": "deft", "rank": 4, "method_options": {"para": True}}, 3 * 4 * sum(OUTPUTS.values())),
        ({"method": "frod", "targets": "q_proj"}, 3 * (64 + int(64 * 64 * 0.01))),
        ({"method": "glora", "rank": 4}, 2 * 3 * 4 * (sum(INPUTS.values()) + sum(OUTPUTS.values()))),
        ({"method": "glora", "method_options": {"config_A_B": "constant"}}, 3 * 7 * 2),
        ({"method": "adamss", "rank": 16}, 3 * (7 * 5 * 16 + sum(OUTPUTS.values()))),
        (
            {"method": "osf", "targets": "down_proj", "method_options": {"effective_rank": 48}},
            3 * 16 * (64 + 1 + 160),
        ),
        ({"method": "supertuning", "targets": "q_proj"}, 3 * int(64 * 64 * (1 - 0.99))),
        ({"method": "beft"}, 3 * 32),
        ({"method": "multitask-prompt-tuning", "method_options": {"num_tasks": 2}}, 20 * 64 + 2 * (20 + 64)),
        ({"method": "cartridge", "checkpointing": False}, 19 * 3 * 2 * 32),
        ({"method": "cpt"}, 20 * 64),
        (
            {"method": "poly", "targets": "q_proj", "rank": 4, "checkpointing": False},
            3 * (4 * (64 * 4 + 4 * 64) + 4),
        ),
        ({"method": "pfeiffer", "method_options": {"bottleneck_size": 8}}, 3 * (2 * 64 * 8 + 8 + 64)),
    ],
    ids=lambda value: str(value.get("method")) if isinstance(value, dict) else "",
)
def test_counts_follow_from_the_shapes(options: dict[str, Any], count: int) -> None:
    """By hand, for three blocks of 64 channels."""
    assert trained(**options) == count


def test_prompts_make_every_sequence_longer() -> None:
    """Twenty trained positions before 32 tokens hold in activations what 52 tokens do, beside masks and labels."""
    prompted = estimate(asked(method="prompt-tuning", checkpointing=False)).memory.activations_bytes
    plain = estimate(asked(method="ln-tuning", checkpointing=False)).memory.activations_bytes
    longer = estimate(asked(method="ln-tuning", checkpointing=False, seq_len=52)).memory.activations_bytes
    assert plain < prompted
    assert abs(prompted - longer) < 0.1 * longer


def test_frozen_a_saves_the_inputs_of_its_targets() -> None:
    """LoRA-FA keeps the products with A, not what they were made of."""
    lora, frozen = (
        estimate(asked(method=name, checkpointing=False)).memory.activations_bytes for name in ("lora", "lora-fa")
    )
    assert frozen < 0.9 * lora


# ---- options, and what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "lora", "method_options": {"init_r": 3}}, "init_r is none of --method lora; it has no options"),
        ({"method": "adalora", "method_options": {"init_q": 3}}, "it has init_r, target_r, total_step"),
        ({"method": "adalora", "method_options": {"init_r": 0}}, "init_r=0 is not allowed"),
        ({"method": "adalora", "method_options": {"init_r": 4}, "rank": 8}, "would start with 4 to end with 8"),
        ({"method": "pissa", "quant": "nf4"}, "computes its first values from dense weights"),
        ({"method": "loftq", "quant": "nf4"}, "take --method qlora"),
        ({"method": "loha", "quant": "nf4"}, "no layers of it over such linears"),
        ({"method": "miss", "rank": 65}, "a target has 64 inputs"),
        ({"method": "miss", "method_options": {"mini_r": 7}}, "does not divide the 64 outputs"),
        ({"method": "prefix-tuning"}, "does not work with gradient checkpointing"),
        ({"method": "p-tuning-v2"}, "--method p-tuning-v2 does not work with gradient checkpointing"),
        ({"method": "fourierft", "method_options": {"n_frequency": 5000}}, "more than the 4096 numbers"),
        ({"method": "bitfit"}, "has none with this config; take --method ln-tuning"),
        ({"method": "partial", "targets": "nothing"}, "names no module of llama; its linears are q_proj"),
        ({"method": "ln-tuning", "targets": "mlp"}, "give names of norms"),
        ({"method": "vera", "targets": "embed_tokens"}, "an embedding"),
        ({"method": "boft", "method_options": {"boft_block_num": 4}}, "peft takes one of them"),
        ({"method": "boft", "method_options": {"boft_block_size": 48}}, "does not divide the 64 inputs"),
        ({"method": "boft", "method_options": {"boft_n_butterfly_factor": 2}}, "is not allowed"),
        ({"method": "c3a"}, "block_size=256 does not divide a target's 64 inputs and 64 outputs"),
        ({"method": "c3a", "method_options": {"block_size": 32}, "quant": "int8"}, "no layers of it over such"),
        ({"method": "hra", "quant": "nf4"}, "no layers of it over such linears"),
        ({"method": "road", "method_options": {"group_size": 7}}, "should be even"),
        ({"method": "road"}, "group_size=64 does not divide the 32 outputs"),
        ({"method": "shira"}, "give --rank 21 or less"),
        ({"method": "shira", "rank": 4, "quant": "int8", "precision": "bf16"}, "take --precision bf16-mixed"),
        ({"method": "vblora"}, "does not divide a target's 64 inputs"),
        ({"method": "vblora", "method_options": {"topk": 300}}, "more than the 256 vectors"),
        ({"method": "qlora", "method_options": {"x": "1"}}, "has no options of its own"),
        ({"method": "peanut", "quant": "nf4"}, "no layers of it over such linears"),
        ({"method": "deft", "quant": "nf4"}, "makes its first values of dense weights"),
        ({"method": "glora", "method_options": {"config_A_B": "none"}}, "trains nothing on these targets"),
        ({"method": "osf", "method_options": {"rank_pattern": "q_proj"}}, "is no PATTERN:RANK"),
        ({"method": "osf", "method_options": {"rank_pattern": "layers.1.*:8"}}, "may tell blocks apart"),
        ({"method": "osf", "method_options": {"effective_rank": 32}}, "would keep 32 of the 32"),
        ({"method": "frod", "precision": "fp32", "base_dtype": "fp32"}, "take --precision bf16-mixed"),
        ({"method": "supertuning", "method_options": {"sparsity": 0.99999}}, "leaves none of a target's"),
        ({"method": "cartridge"}, "does not work with gradient checkpointing"),
        ({"method": "poly"}, "does not work with gradient checkpointing"),
        ({"method": "poly", "method_options": {"n_splits": 3}}, "give a divisor of those of all targets"),
        ({"method": "cpt", "loss": "chunked"}, "computes a second loss from whole logits; take --loss standard"),
        (
            {"method": "cartridge", "method_options": {"num_frozen_tokens": 20}, "checkpointing": False},
            "leaves none of 20 positions",
        ),
        ({"method": "gralora", "rank": 9}, "--rank 9 with --method gralora is shared out among gralora_k=2 blocks"),
        ({"method": "gralora", "quant": "int8"}, "adds in place to what bitsandbytes returns"),
        ({"method": "delora", "quant": "nf4"}, "--method delora with --quant nf4"),
        ({"method": "unilora", "quant": "nf4"}, "which makes them zero"),
        ({"method": "bdlora", "quant": "nf4"}, "leaves out the blocks"),
        ({"method": "bdlora", "method_options": {"target_modules_bd_a": "down_proj"}}, "name it in one of them"),
        (
            {"method": "bdlora", "method_options": {"target_modules_bd_a": "q_proj,down_proj"}},
            "leave one of them out",
        ),
        ({"method": "bdlora", "rank": 8, "method_options": {"nblocks": 3}}, "nblocks=3 does not divide"),
        ({"method": "psoft", "rank": 40}, "a target has 32 singular vectors; give --rank 32 or less"),
        ({"method": "waveft", "method_options": {"n_frequency": 9999}}, "n_frequency=9999 is more than the"),
        ({"method": "waveft", "method_options": {"wavelet_family": "db11"}}, "should be one of db1 to db10"),
        (
            {"method": "miss", "rank": 7, "method_options": {"init_weights": "bat"}},
            "divides weights into square blocks",
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_in_a_line(options: dict[str, Any], words: str) -> None:
    """What was given, and what to do."""
    with pytest.raises(BadInput) as refusal:
        estimate(asked(**options))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_options_reach_peft_under_its_own_names() -> None:
    """What is given is handed on, as numbers; what is left open is left to peft."""
    job = plan_trace(asked(method="adalora", method_options={"init_r": "12"})).job
    assert job.peft == {"peft_type": "ADALORA", "init_r": 12, "total_step": 1000}
    assert plan_trace(asked(method="miss", method_options={"mini_r": 8})).job.peft["init_weights"] == "mini"


def test_the_rank_is_the_methods_unless_it_is_given() -> None:
    """VeRA starts from 256; what is given stands, and a request that is filled in stays what it is."""
    filled = resolve(asked(method="vera")).request
    assert filled.rank == 256
    assert resolve(filled).request.rank == 256
    assert resolve(asked(method="vera", rank=16)).request.rank == 16
    assert resolve(asked(method="lora")).request.rank == 16


def test_fields_without_an_effect_are_named() -> None:
    """A rank given to a method that has none is no silent nothing."""
    notes = estimate(asked(method="ia3", rank=4)).notes
    assert "--rank changes nothing with --method ia3" in notes
    assert not any("changes nothing" in note for note in estimate(asked(method="lora", rank=4)).notes)


def test_initialisations_have_figures() -> None:
    """What is held beside the model, what is computed, and what has to be kept on disk for it."""
    found = {name: estimate(asked(method=name)).method.initialisation for name in INITIALISED}
    weights = 3 * sum(INPUTS[name] * OUTPUTS[name] for name in INPUTS)
    covariances = 3 * sum(4 * size**2 for size in INPUTS.values())
    assert 2 * weights < found["lora-ga"].beside_bytes < 5 * weights
    assert covariances < found["corda"].beside_bytes < 5 * covariances
    assert found["pissa"].num_flop > 4 * found["olora"].num_flop > 0
    assert found["eva"].disk_bytes == 0
    assert found["pissa"].disk_bytes == 3 * estimate(asked(method="lora")).method.adapter_checkpoint_bytes
    assert {name: facts.reads for name, facts in found.items()} == INITIALISED
    assert estimate(asked(method="lora")).method.initialisation is None


def test_initialisations_take_no_less_than_the_card_takes_for_their_flop() -> None:
    """With a card there are seconds; twice the matrices take as long again."""
    facts = estimate(asked(method="pissa", gpu="t4")).method.initialisation
    half = estimate(asked(method="pissa", gpu="t4", targets="attention")).method.initialisation
    assert 0 < half.least_s < facts.least_s
    assert facts.least_s / half.least_s == pytest.approx(facts.num_flop / half.num_flop)
    assert facts.peak_allocated_bytes > facts.beside_bytes


def test_what_layers_share_is_saved_with_each() -> None:
    """As peft's own save_pretrained of these models has it, to the byte."""
    saved = {
        ("lily", "stride_A=2,num_B=3"): 220_128,
        ("frod", "sparse_rate=0.05"): 177_104,
        ("adamss", ""): 118_080,
        ("supertuning", ""): 10_224,
    }
    for (name, options), num_bytes in saved.items():
        given = dict(part.split("=") for part in options.split(",") if part)
        rank = {"lily": {"rank": 8}, "adamss": {"rank": 16}}.get(name, {})
        answer = estimate(asked(method=name, method_options=given, **rank))
        assert answer.method.adapter_checkpoint_bytes == num_bytes


def test_a_second_loss_stands_beside_the_first() -> None:
    """CPT's forward holds whole logits of its own beside all that the model's own loss keeps."""
    second, first = (
        estimate(asked(method=name, micro_batch=4)).memory.moments["loss"] for name in ("cpt", "prompt-tuning")
    )
    tokens, vocab = 4 * (32 + 20), LLAMA["vocab_size"]
    assert second - first > tokens * vocab * 2


def test_hooks_that_are_lost_are_told() -> None:
    """peft makes OSF's factors anew as it casts them, without the hooks that project their gradients."""
    assert any("loses the hooks" in note for note in estimate(asked(method="osf")).notes)
    kept = asked(method="osf", adapter_dtype="bf16", precision="bf16")
    assert not any("loses the hooks" in note for note in estimate(kept).notes)


def test_weights_on_the_host_take_nothing_of_the_gpu() -> None:
    """FRoD multiplies no frozen weight, and may leave it on the host."""
    here, away = (
        estimate(asked(method="frod", method_options={"runtime_offload_base_weight": offload})).memory.resident
        for offload in (False, True)
    )
    assert here.weights - away.weights == 2 * 3 * sum(INPUTS[name] * OUTPUTS[name] for name in INPUTS)


def test_what_is_saved_is_not_always_what_trains() -> None:
    """Frozen A is saved, prompts without their encoder, VeRA's matrices unless they are left out."""
    saved = {
        name: estimate(asked(method=name, rank=4)).method.adapter_checkpoint_bytes
        for name in ("lora", "lora-fa", "p-tuning", "prompt-tuning", "vera")
    }
    assert saved["lora-fa"] == saved["lora"]
    assert saved["p-tuning"] == saved["prompt-tuning"] == 4 * 20 * 64
    shira = estimate(asked(method="shira", rank=4))
    assert shira.method.adapter_checkpoint_bytes == (4 + 2 * 4) * shira.method.num_trainable_params
    vblora = {"method": "vblora", "targets": "k_proj", "method_options": {"vector_length": 16}}
    chosen = {**vblora["method_options"], "save_only_topk_weights": True}
    few = estimate(asked(**{**vblora, "method_options": chosen})).method.adapter_checkpoint_bytes
    assert few == 4 * 256 * 16 + 3 * 4 * (64 + 32) // 16 * (2 * 2 + 4)
    left_out = estimate(asked(method="vera", rank=4, method_options={"save_projection": False}))
    assert saved["vera"] - left_out.method.adapter_checkpoint_bytes == 4 * 4 * (160 + 160)
