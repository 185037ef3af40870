"""T5: two stacks that share biases, a head that is scaled, and an output matrix that is never packed."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from peftplan.arch import build_model
from peftplan.catalog import ModelRecord, all_models
from peftplan.errors import BadInput
from peftplan.memory.step import play_evaluation, play_step
from peftplan.memory.timeline import Timeline
from peftplan.methods import METHODS
from peftplan.methods.targets import matched
from peftplan.specs.formats import BF16, FP16, FP32, DType, QuantFormat
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.run import StepSpec

RECORDS = [record for record in all_models() if record.config["model_type"] == "t5"]
HEADS = 4
TINY: dict[str, Any] = {
    "model_type": "t5",
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 5,
    "num_heads": HEADS,
    "vocab_size": 512,
}


def prepared(config: dict[str, Any], method: str = "full", base: DType = BF16) -> ModelSpec:
    """A model as a method leaves it."""
    model = build_model(config)
    quant = QuantFormat("nf4") if method == "qlora" else None
    spec = MethodSpec(8, 0.0, "all-linear", "none", (), FP32, base, quant, method == "qlora")
    METHODS[method].apply(model, spec)
    return model


def step_of(length: int, batch: int, checkpointing: bool, autocast: DType | None, attention: str) -> StepSpec:
    """A plain step."""
    loop = (False, False, False)
    return StepSpec(batch, length, checkpointing, autocast, attention, "standard", *loop, "adamw", (8, 0))


def play(
    model: ModelSpec,
    length: int = 64,
    batch: int = 2,
    checkpointing: bool = False,
    autocast: DType | None = None,
    attention: str = "sdpa",
) -> Timeline:
    """One step of a small batch."""
    return play_step(model, step_of(length, batch, checkpointing, autocast, attention))


def one_by_one(model: ModelSpec) -> ModelSpec:
    """The model with a module of its own for every block, so that each is played."""
    single, seen = [], set()
    for run in model.runs:
        for offset in range(run.count):
            block = deepcopy(run.block) if id(run.block) in seen else run.block
            seen.add(id(run.block))
            before = run.before if offset == 0 else None
            single.append(BlockRun(block, 1, run.first_index + offset, run.path, before=before))
    model.runs = single
    return model


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
def test_the_count_is_the_catalogues(record: ModelRecord) -> None:
    """Both stacks, their biases and one shared table add up to what transformers builds."""
    assert build_model(record.config).num_params() == record.num_params


@pytest.mark.parametrize("projection", ["relu", "gated-gelu"])
def test_targets_name_the_linears_of_both_stacks(projection: str) -> None:
    """Attention covers three attentions' projections, mlp both feed-forwards; the head belongs to neither."""
    model = build_model({**TINY, "feed_forward_proj": projection})
    attention = [name for _, name, _ in matched(model, "attention")]
    mlp = [name for _, name, _ in matched(model, "mlp")]
    kinds = 2  # the first block of each stack is a module of its own
    assert len(attention) == kinds * 4 * 3
    assert len(mlp) == kinds * 2 * (3 if projection == "gated-gelu" else 2)
    assert len(matched(model, "all-linear")) == len(attention) + len(mlp)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_block_stands_for_all(method: str, checkpointing: bool, attention: str) -> None:
    """Playing every block by itself gives the same levels as playing three of each stack."""
    autocast = None if method == "full" else BF16
    model = prepared({**TINY, "num_decoder_layers": 4}, method)
    few = play(model, checkpointing=checkpointing, autocast=autocast, attention=attention)
    model = one_by_one(model)
    all_played = play(model, checkpointing=checkpointing, autocast=autocast, attention=attention)
    assert (len(few.plays), len(all_played.plays)) == (6, 9)
    assert few.forward_end_requested == all_played.forward_end_requested
    for phase, moment in all_played.phases.items():
        assert few.phases[phase].bytes == moment.bytes, phase
    assert few.end_bytes == all_played.end_bytes


def test_every_self_attention_saves_a_copy_of_the_bias() -> None:
    """Two bytes a head and pair in either stack, and in the decoder one more for what is not looked at."""

    def saved(layers: int, length: int) -> int:
        model = prepared({**TINY, "num_layers": layers, "num_decoder_layers": layers})
        return play(model, length, 1).forward_end_requested

    one, two, three = (saved(5, n) - saved(4, n) for n in (64, 128, 192))
    assert (three - 2 * two + one) / (2 * 64 * 64) == 2 * (2 * HEADS) + 1


def test_the_feed_forwards_output_matrix_is_never_packed_and_stays_wide() -> None:
    """`wo` is on the library's list of what a 4-bit load leaves, and is fp32 where the rest is fp16."""
    model = prepared(TINY, "qlora")
    packed = {name for name, parameter, _ in model.parameters() if parameter.quant is not None}
    assert packed
    assert not any(".wo." in name or "lm_head" in name for name in packed)
    types = {name.rpartition(".")[0]: p.dtype for name, p, _ in prepared(TINY, base=FP16).parameters()}
    assert {dtype for name, dtype in types.items() if name.endswith(".wo")} == {FP32}
    assert {dtype for name, dtype in types.items() if not name.endswith(".wo")} == {FP16}


def test_both_stacks_embeddings_and_the_zero_bias_ask_for_gradients_under_checkpointing() -> None:
    """Three tensors that are no weights: without checkpointing none of them does."""
    model = prepared(TINY, "lora")
    assert len(play(model, checkpointing=True).player.leaves) == 3
    assert not play(model).player.leaves


def test_a_checkpoints_own_head_is_named_in_a_note() -> None:
    """Newer T5s were published untied: the library ties them when built, and not when loaded."""
    model = build_model({**TINY, "tie_word_embeddings": False})
    assert any(f"{TINY['d_model'] * TINY['vocab_size']:,}" in note for note in model.notes)
    assert not build_model(TINY).notes
    assert model.num_params() == build_model(TINY).num_params()


def test_the_original_scales_its_last_hidden_states() -> None:
    """A config that says tied keeps a scaled copy beside the head's input while the loss is computed."""
    tied, untied = (
        play(prepared({**TINY, "tie_word_embeddings": word}, "lora")).loss_forward_bytes for word in (True, False)
    )
    assert tied - untied == 2 * 64 * TINY["d_model"] * BF16.itemsize


def test_an_evaluation_pass_needs_less_than_a_step() -> None:
    """Nothing is kept for backward, and nothing is dropped out."""
    model = prepared(TINY)
    step = step_of(64, 2, False, None, "sdpa")
    assert play_evaluation(model, step) < play_step(model, step).phases["forward"].bytes


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"feed_forward_proj": "gated"}, "feed_forward_proj"),
        ({"feed_forward_proj": "twice-gated-gelu"}, "feed_forward_proj"),
        ({"feed_forward_proj": "gated-mish"}, "feed_forward_proj"),
        ({"num_heads": 0}, "num_heads"),
        ({"dropout_rate": -0.1}, "dropout_rate"),
        ({"num_decoder_layers": "6"}, "num_decoder_layers"),
        ({"d_model": 1.5}, "d_model"),
    ],
)
def test_unusable_values_are_named(more: dict[str, Any], word: str) -> None:
    """A config that the library could not build is refused with the key at fault."""
    with pytest.raises(BadInput, match=word):
        build_model({**TINY, **more})
