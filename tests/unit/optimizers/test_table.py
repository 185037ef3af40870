"""The table of optimizers: names, options, and that one row is all that a further one takes."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan import Report, Request, estimate
from peftplan.errors import BadInput
from peftplan.optimizers import ALIASES, OPTIMIZERS, Optimizer, Weight, canonical
from peftplan.optimizers.chosen import chosen
from peftplan.optimizers.row import moments
from peftplan.resolve import resolve
from peftplan.specs.formats import BF16, FP32

# transformers' names of --optim that have a row here.
TRAINERS = (
    *("adamw_torch", "adamw_torch_fused", "adafactor", "adamw_torch_4bit", "adamw_torch_8bit", "ademamix", "sgd"),
    *("adagrad", "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit"),
    *("paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit"),
    *("rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "galore_adamw", "galore_adafactor"),
    *("galore_adamw_8bit", "galore_adamw_8bit_layerwise"),
    *("galore_adamw_layerwise", "galore_adafactor_layerwise", "lomo", "adalomo", "schedule_free_radam"),
    *("schedule_free_adamw", "schedule_free_sgd", "apollo_adamw", "apollo_adamw_layerwise"),
)


def report(**fields: Any) -> Report:
    """One answer for GPT-2."""
    return estimate(Request(**{"model": "gpt2", "method": "full", "seq_len": 64, **fields}))


@pytest.mark.parametrize("name", TRAINERS)
def test_trainers_names_are_known(name: str) -> None:
    """Each name of transformers' --optim stands for a row."""
    assert canonical(name) in OPTIMIZERS


def test_no_name_stands_for_two_optimizers() -> None:
    """Other names are told once, and none of them is a row's own."""
    told = [alias for row in OPTIMIZERS.values() for alias in row.aliases]
    assert len(told) == len(set(told)) == len(ALIASES)
    assert not set(told) & set(OPTIMIZERS)


def test_another_name_is_answered_under_the_rows_own() -> None:
    """The answer's request names the row, so that two ways of asking are one."""
    answer = report(optimizer="paged_adamw_32bit")
    assert answer.request["optimizer"] == "paged-adamw"
    assert answer.memory == report(optimizer="paged-adamw").memory


def test_an_optimizer_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is new is answered for: states, step and time follow from it."""
    row = Optimizer("thrice", "three states, one kernel a tensor", "torch-adamw", moments("a", "b", "c"))
    monkeypatch.setitem(OPTIMIZERS, "thrice", row)
    answer = report(optimizer="thrice", gpu="t4")
    assert answer.memory.resident.optimizer_states == 3 * answer.memory.resident.gradients
    assert answer.time is not None
    assert answer.time.terms["optimizer"] > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_have_names_and_sum_to_what_is_resident(name: str) -> None:
    """The breakdown tells the states one by one."""
    answer = report(optimizer=name, model="llama-3.2-1b")
    states = [node for node in answer.memory.breakdown.children if node.name == "optimizer states"]
    told = [child for node in states for child in node.children]
    assert sum(child.bytes for child in told) == answer.memory.resident.optimizer_states
    assert all(child.name for child in told)
    assert sum(node.bytes for node in answer.memory.breakdown.children) == answer.memory.peak_allocated_bytes


def test_options_are_those_of_one_optimizer_and_have_their_defaults() -> None:
    """A request is answered with its options filled in; what they are not is refused with what there is."""
    asked = {"optimizer": "galore", "model": "llama-3.2-1b"}
    assert report(**asked).request["optimizer_options"] == {
        "rank": 128,
        "update_proj_gap": 200,
        "target_modules": "attn,mlp",
    }
    with pytest.raises(BadInput, match="--optimizer-option rnak is none of --optimizer galore-adamw; it has rank"):
        report(**asked, optimizer_options={"rnak": 3})
    with pytest.raises(BadInput, match="--optimizer-option rank=0 is not allowed"):
        report(**asked, optimizer_options={"rank": 0})
    with pytest.raises(BadInput, match="it has no options of its own"):
        report(optimizer="adamw", optimizer_options={"rank": 3})


def test_trainer_sets_some_options_otherwise_than_the_library() -> None:
    """torchao's 4-bit AdamW shares a scale among 128 values, in Trainer's hands among 256."""
    asked = Request(model="gpt2", method="full", optimizer="adamw_torch_4bit")
    assert resolve(asked).request.optimizer_options == {"block_size": 128}
    assert resolve(asked.model_copy(update={"loop": "trainer"})).request.optimizer_options == {"block_size": 256}


def test_adam_minis_heads_are_those_of_the_models_config() -> None:
    """768 values in 12 heads; another number may be given."""
    asked = Request(model="gpt2", method="full", optimizer="adam-mini")
    assert resolve(asked).request.optimizer_options == {"dim": 768, "n_heads": 12}
    assert (
        resolve(asked.model_copy(update={"optimizer_options": {"n_heads": "6"}})).step.optimizer_options.n_heads
        == 6
    )


def test_muon_leaves_embeddings_head_and_vectors_to_adamw() -> None:
    """One state for a hidden matrix, two for the rest."""
    picked = chosen(resolve(Request(model="gpt2", method="full", optimizer="muon")).step)
    sizes = {
        kind: [size for _, size in picked.states(Weight((64, 32), BF16, "x.weight", kind))]
        for kind in ("linear", "embedding", "head")
    }
    assert sizes == {"linear": [4096], "embedding": [4096, 4096], "head": [4096, 4096]}
    assert len(picked.states(Weight((64,), BF16, "x.bias", "linear"))) == 2


def test_galore_keeps_all_singular_vectors_where_nothing_is_cast() -> None:
    """A projection in bf16 is a cast of some vectors; in fp32 it is a part of all of them, which stay."""
    picked = chosen(resolve(Request(model="llama-3.2-1b", method="full", optimizer="galore")).step)
    name = "model.layers.0.mlp.up_proj.weight"
    narrow = dict(picked.states(Weight((4096, 1024), BF16, name)))
    wide = dict(picked.states(Weight((4096, 1024), FP32, name)))
    assert narrow["projections"] == 2 * 128 * 1024
    assert wide["projections"] == 4 * 1024 * 1024
    assert wide["first moment"] == 4 * 4096 * 128
