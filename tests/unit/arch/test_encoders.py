"""BERT, RoBERTa and DeBERTa with their masked-language-model heads: counts, targets, refusals, saved bytes."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from peftplan.arch import build_model
from peftplan.catalog import ModelRecord, all_models
from peftplan.errors import BadInput
from peftplan.memory.step import play_step
from peftplan.memory.timeline import Timeline
from peftplan.methods import METHODS
from peftplan.methods.targets import matched
from peftplan.specs.formats import BF16, FP32, DType, QuantFormat
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.run import StepSpec

FAMILIES = ("bert", "roberta", "deberta-v2")
RECORDS = [record for record in all_models() if record.config["model_type"] in FAMILIES]
TINY: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "vocab_size": 512,
}
RELATIVE: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 32,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}


def tiny(family: str, **more: Any) -> dict[str, Any]:
    """A small config of a family; DeBERTa's with relative positions."""
    relative = RELATIVE if family == "deberta-v2" else {}
    return {"model_type": family, **TINY, **relative, **more}


def prepared(config: dict[str, Any], method: str = "full", base: DType = BF16) -> ModelSpec:
    """A model as a method leaves it."""
    model = build_model(config)
    quant = QuantFormat("nf4") if method == "qlora" else None
    spec = MethodSpec(8, 0.0, "all-linear", "none", (), FP32, base, quant, method == "qlora")
    METHODS[method].apply(model, spec)
    return model


def play(
    model: ModelSpec, length: int = 64, batch: int = 2, checkpointing: bool = False, autocast: DType | None = None
) -> Timeline:
    """One step of a small batch."""
    loop = (False, False, False)
    kernels = ("adamw", (8, 0))
    return play_step(model, StepSpec(batch, length, checkpointing, autocast, "sdpa", "standard", *loop, *kernels))


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


def per_layer(config: dict[str, Any], length: int) -> int:
    """Bytes that one more block of full 16-bit training keeps at the end of forward, one sequence."""

    def saved(layers: int) -> int:
        model = prepared({**config, "num_hidden_layers": layers})
        return play(model, length, 1).forward_end_requested

    return saved(5) - saved(4)


def per_square(config: dict[str, Any], step: int = 64) -> float:
    """The share of `per_layer` that grows with the square of the length, per position pair."""
    one, two, three = (per_layer(config, step * n) for n in (1, 2, 3))
    return (three - 2 * two + one) / (2 * step * step)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
def test_the_count_is_the_catalogues(record: ModelRecord) -> None:
    """Every encoder's parameters, head included, add up to what transformers builds."""
    assert build_model(record.config).num_params() == record.num_params


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_mlp_part_the_blocks_linears(family: str) -> None:
    """The two words share no linear, and with the head's own transform make up all-linear."""
    model = build_model(tiny(family))
    attention, mlp, everything = (
        {name for _, name, _ in matched(model, word)} for word in ("attention", "mlp", "all-linear")
    )
    assert "attention.output.dense" in attention
    assert "output.dense" in mlp
    assert not attention & mlp
    assert len(everything - attention - mlp) == 1
    assert model.head_path not in everything


@pytest.mark.parametrize("family", FAMILIES)
def test_a_four_bit_load_packs_the_transform_and_leaves_the_tied_head(family: str) -> None:
    """The decoder shares the word embeddings, so it stays dense; the linear before it is packed."""
    model = prepared(tiny(family), "qlora")
    packed = {name for name, parameter, _ in model.parameters() if parameter.quant is not None}
    outside = [name for name in packed if ".layer." not in name]
    assert len(outside) == 1
    assert not any("decoder" in name for name in packed)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_block_stands_for_all(family: str, method: str, checkpointing: bool) -> None:
    """Playing every block by itself gives the same levels as playing one of each kind."""
    config = tiny(family, conv_kernel_size=3) if family == "deberta-v2" else tiny(family)
    autocast = None if method == "full" else BF16
    model = prepared(config, method)
    few = play(model, checkpointing=checkpointing, autocast=autocast)
    all_played = play(one_by_one(model), checkpointing=checkpointing, autocast=autocast)
    assert len(few.plays) < len(all_played.plays)
    assert few.forward_end_requested == all_played.forward_end_requested
    for phase, moment in all_played.phases.items():
        assert few.phases[phase].bytes == moment.bytes, phase
    assert few.end_bytes == all_played.end_bytes


def test_a_bert_block_saves_this_much_for_each_token() -> None:
    """18 h + 4 I + 4 heads + 16: queries, keys, values, two dropout masks, both norms' inputs and results."""
    config = tiny("bert")
    h, inner, heads = TINY["hidden_size"], TINY["intermediate_size"], TINY["num_attention_heads"]
    assert (per_layer(config, 128) - per_layer(config, 64)) / 64 == 18 * h + 4 * inner + 4 * heads + 16


@pytest.mark.parametrize(("kinds", "indices"), [("p2c|c2p", 2), ("c2p", 1), ("", 0)])
def test_a_deberta_block_saves_weights_a_mask_and_indices_for_each_pair(kinds: str, indices: int) -> None:
    """5 bytes a head (softmax, dropout and its mask), one of the mask, 8 for each lookup by distance."""
    config = tiny("deberta-v2", pos_att_type=kinds)
    assert per_square(config) == 5 * TINY["num_attention_heads"] + 1 + 8 * indices


def test_deberta_keeps_every_blocks_output_through_forward() -> None:
    """All hidden states live until the encoder's caller returns, also those that no backward needs."""
    model = prepared(tiny("deberta-v2"), "lora")
    player = play(model).player
    per_block = 2 * 64 * TINY["hidden_size"] * BF16.itemsize
    assert player.dropped
    assert all(size % per_block == 0 for size, _ in player.dropped.values())


def test_deberta_attends_in_the_written_out_form_alone() -> None:
    """The library has neither sdpa nor flash attention for it."""
    assert build_model(tiny("deberta-v2")).attention_kinds == ("eager",)


def test_roberta_counts_positions_from_behind_the_padding() -> None:
    """514 rows of positions are 512 places, since numbering starts two later."""
    assert build_model(tiny("roberta", max_position_embeddings=514)).max_seq_len == 512
    assert build_model(tiny("bert", max_position_embeddings=512)).max_seq_len == 512


def test_debertas_other_head_multiplies_by_the_words() -> None:
    """Without `legacy` there is no decoder: its linear is the output module, and a bias stands beside it."""
    model = build_model(tiny("deberta-v2", legacy=False))
    names = {name for name, _, _ in model.parameters()}
    assert "lm_predictions.lm_head.bias" in names
    assert not any("decoder" in name for name in names)
    assert play(prepared(tiny("deberta-v2", legacy=False))).forward_end_requested > 0


@pytest.mark.parametrize(
    ("family", "more", "word"),
    [
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("roberta", {"add_cross_attention": True}, "add_cross_attention"),
        ("bert", {"num_attention_heads": 3}, "num_attention_heads"),
        ("bert", {"hidden_dropout_prob": 1.0}, "hidden_dropout_prob"),
        ("bert", {"hidden_act": "mish"}, "hidden_act"),
        ("roberta", {"vocab_size": 0}, "vocab_size"),
        ("deberta-v2", {"pos_att_type": 3}, "pos_att_type"),
        ("deberta-v2", {"conv_kernel_size": 4}, "conv_kernel_size"),
        ("deberta-v2", {"conv_kernel_size": 3, "conv_groups": 3}, "conv_groups"),
        ("deberta-v2", {"attention_head_size": 7}, "attention_head_size"),
        ("deberta-v2", {"position_buckets": -2}, "position_buckets"),
        ("deberta-v2", {"legacy": False, "embedding_size": 64}, "embedding_size"),
    ],
)
def test_unusable_values_are_named(family: str, more: dict[str, Any], word: str) -> None:
    """A config that the library could not build is refused with the key at fault."""
    with pytest.raises(BadInput, match=word):
        build_model(tiny(family, **more))


@pytest.mark.parametrize(
    "more",
    [
        {"share_att_key": False},
        {"pos_att_type": ["p2c"], "share_att_key": False},
        {"relative_attention": False},
        {"position_buckets": -1, "norm_rel_ebd": "none"},
        {"position_biased_input": True, "type_vocab_size": 2, "embedding_size": 64},
        {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        {"num_hidden_layers": 1, "conv_kernel_size": 3},
        {"num_hidden_layers": 2},
    ],
)
def test_debertas_variants_play(more: dict[str, Any]) -> None:
    """Every form of relative attention plays a step, all trained and with adapters."""
    for method in ("full", "lora"):
        assert play(prepared(tiny("deberta-v2", **more), method), checkpointing=True).end_bytes > 0
