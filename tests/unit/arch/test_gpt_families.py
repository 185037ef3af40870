"""GPT-2, BigCode, NeoX, GPT-J, OPT, Phi, Falcon and Bloom: counts, targets, refusals, what one block saves."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from peftplan.arch import build_model
from peftplan.catalog import ModelRecord, all_models
from peftplan.errors import BadInput
from peftplan.memory.step import play_step
from peftplan.memory.timeline import Timeline
from peftplan.methods import METHODS
from peftplan.methods.quantize import Linear4bit
from peftplan.methods.targets import matched
from peftplan.specs.formats import BF16, FP32, DType, QuantFormat
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.run import StepSpec

HIDDEN, HEADS, VOCAB = 192, 3, 512
GPT2_NAMES = {"n_embd": HIDDEN, "n_layer": 4, "n_head": HEADS}
PLAIN_NAMES = {"hidden_size": HIDDEN, "num_hidden_layers": 4, "num_attention_heads": HEADS}

TINY: dict[str, dict[str, Any]] = {
    "gpt2": GPT2_NAMES,
    "gpt_bigcode": GPT2_NAMES,
    "gptj": {**GPT2_NAMES, "rotary_dim": 16},
    "bloom": {"hidden_size": HIDDEN, "n_layer": 4, "n_head": HEADS},
    "gpt_neox": {**PLAIN_NAMES, "intermediate_size": 4 * HIDDEN},
    "opt": {**PLAIN_NAMES, "ffn_dim": 4 * HIDDEN},
    "phi": {**PLAIN_NAMES, "intermediate_size": 4 * HIDDEN},
    "falcon": PLAIN_NAMES,
}
RECORDS = [record for record in all_models() if record.config["model_type"] in TINY]

# Falcon's three kinds of block
RW = {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True}
GROUPED = {"new_decoder_architecture": True, "num_attention_heads": 6, "num_kv_heads": 3}


def tiny(family: str, **more: Any) -> dict[str, Any]:
    """A small config of a family."""
    return {"model_type": family, "vocab_size": VOCAB, **TINY[family], **more}


def prepared(
    config: dict[str, Any], method: str = "full", adapter: DType = FP32, targets: str = "all-linear"
) -> ModelSpec:
    """A model as a method leaves it."""
    model = build_model(config)
    quant = QuantFormat("nf4") if method == "qlora" else None
    spec = MethodSpec(8, 0.0, targets, "none", (), adapter, BF16, quant, method == "qlora")
    METHODS[method].apply(model, spec)
    return model


def play(
    model: ModelSpec,
    length: int = 128,
    batch: int = 1,
    checkpointing: bool = False,
    autocast: DType | None = None,
    attention: str = "sdpa",
) -> Timeline:
    """One step of a small batch."""
    step = StepSpec(
        batch, length, checkpointing, autocast, attention, "standard", False, False, False, "adamw", (8, 0)
    )
    return play_step(model, step)


def saved_by_a_block(family: str, length: int, batch: int = 1, **more: Any) -> int:
    """Bytes that one more block of full bf16 training keeps for backward."""
    depth = "num_hidden_layers" if "num_hidden_layers" in TINY[family] else "n_layer"

    def saved(layers: int) -> int:
        return play(prepared(tiny(family, **{depth: layers}, **more)), length, batch).forward_end_requested

    return saved(4) - saved(3)


def per_token(family: str, **more: Any) -> float:
    """The same for one more token, where nothing grows faster than the sequence."""
    return (saved_by_a_block(family, 256, **more) - saved_by_a_block(family, 128, **more)) / 128


def growth(saved: Callable[[int], int]) -> tuple[float, float]:
    """Bytes for each token, and for each pair of tokens, of something that grows with both."""
    one, two, three = (saved(128 * n) for n in (1, 2, 3))
    pair = (three - 2 * two + one) / (2 * 128**2)
    return (two - one) / 128 - 3 * 128 * pair, pair


# ---- counts and names


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
def test_the_count_is_the_catalogues(record: ModelRecord) -> None:
    """Every model's parameters add up to what transformers builds."""
    assert build_model(record.config).num_params() == record.num_params


@pytest.mark.parametrize(
    ("family", "attention", "mlp"),
    [
        ("gpt2", {"attn.c_attn", "attn.c_proj"}, {"mlp.c_fc", "mlp.c_proj"}),
        ("gptj", {f"attn.{x}_proj" for x in ("q", "k", "v", "out")}, {"mlp.fc_in", "mlp.fc_out"}),
        ("opt", {f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")}, {"fc1", "fc2"}),
        ("phi", {f"self_attn.{x}" for x in ("q_proj", "k_proj", "v_proj", "dense")}, {"mlp.fc1", "mlp.fc2"}),
        (
            "gpt_neox",
            {"attention.query_key_value", "attention.dense"},
            {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
        ),
        *(
            (
                family,
                {"self_attention.query_key_value", "self_attention.dense"},
                {"mlp.dense_h_to_4h", "mlp.dense_4h_to_h"},
            )
            for family in ("falcon", "bloom")
        ),
    ],
)
def test_targets_resolve(family: str, attention: set[str], mlp: set[str]) -> None:
    """`attention`, `mlp` and `all-linear` name a block's linears under the family's own names."""
    for word, expected in (("attention", attention), ("mlp", mlp), ("all-linear", attention | mlp)):
        assert {name for _, name, _ in matched(build_model(tiny(family)), word)} == expected


def test_opt_350m_adapts_its_projections_too() -> None:
    """Where words are narrower than the model, all-linear reaches project_in and project_out too."""
    config = tiny("opt", word_embed_proj_dim=96, do_layer_norm_before=False)
    everything = {name for _, name, _ in matched(build_model(config), "all-linear")}
    assert {"model.decoder.project_in", "model.decoder.project_out"} < everything
    assert len(matched(build_model(config), "attention")) == 4
    assert "model.decoder.final_layer_norm.weight" not in {name for name, _, _ in build_model(config).parameters()}


def test_a_missing_key_takes_the_config_classs_default() -> None:
    """Sizes and dropouts that a config leaves out are those of transformers' config class."""
    for family, layers, limit in (
        ("gpt2", 12, 1024),
        ("gptj", 28, 2048),
        ("gpt_neox", 44, 2048),
        ("opt", 12, 2048),
        ("phi", 24, 2048),
        ("falcon", 32, 2048),
        ("bloom", 2, None),
    ):
        model = build_model({"model_type": family})
        assert (model.num_layers, model.max_seq_len) == (layers, limit), family


def test_both_names_of_a_size_are_read() -> None:
    """GPT-2's n_embd and the common hidden_size name one value, as transformers' attribute map says."""
    common = {"model_type": "gpt2", "vocab_size": VOCAB, **PLAIN_NAMES}
    assert build_model(common).num_params() == build_model(tiny("gpt2")).num_params()


@pytest.mark.parametrize(
    ("family", "change", "key"),
    [
        ("gpt2", {"n_head": 5}, "n_head"),
        ("gpt2", {"n_embd": "wide"}, "n_embd"),
        ("gpt2", {"resid_pdrop": 1.5}, "resid_pdrop"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt_neox", {"num_attention_heads": 7}, "num_attention_heads"),
        ("gpt_neox", {"rotary_pct": 0.0}, "rotary_pct"),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 2}}, "partial_rotary_factor"),
        ("gptj", {"rotary_dim": 63}, "rotary_dim"),
        ("opt", {"word_embed_proj_dim": -1}, "word_embed_proj_dim"),
        ("opt", {"activation_function": "mystery"}, "activation_function"),
        ("phi", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("falcon", {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        ("falcon", {"alibi": "yes"}, "alibi"),
        ("bloom", {"slow_but_exact": True, "pretraining_tp": 4}, "slow_but_exact"),
    ],
)
def test_unusable_values_are_refused(family: str, change: dict[str, Any], key: str) -> None:
    """A value that the family cannot have is one clear line that names its key."""
    with pytest.raises(BadInput, match=key):
        build_model(tiny(family, **change))


# ---- what a block saves for backward, in full bf16 training


def test_saved_bytes_of_a_gpt2_block() -> None:
    """GELU written out keeps five tensors of the inner width; every dropout keeps a byte an element."""
    h, inner = HIDDEN, 4 * HIDDEN
    norms = 2 * (2 * h + 8)
    attention = 2 * h + 2 * 3 * h + 2 * h + 4 * HEADS  # normed input, qkv, result, log-sum-exp
    gelu = 2 * inner * 5  # its input, half of it, tanh, 1 + tanh, and the product
    mlp = 2 * h + gelu
    masks = h + h
    assert per_token("gpt2") == norms + attention + mlp + masks
    assert per_token("gpt2", resid_pdrop=0.0) == norms + attention + mlp


def test_saved_bytes_of_a_gpt_neox_block() -> None:
    """Rotated heads are joined whole again, and the result is copied out of their layout."""
    h, inner = HIDDEN, 4 * HIDDEN
    norms = 2 * h + 2 * 8 + 2 * 2 * h  # the shared input, statistics, both results
    attention = 2 * 3 * h + 2 * 2 * h + 2 * 2 * h + 4 * HEADS  # qkv, q and k, the result twice
    assert per_token("gpt_neox", hidden_act="gelu") == norms + attention + 2 * 2 * inner


def test_saved_bytes_of_an_opt_block() -> None:
    """ReLU keeps its result alone; the one dropout of each half keeps a byte an element."""
    h, inner = HIDDEN, 4 * HIDDEN
    norms = 2 * (2 * h + 8) + 2 * 2 * h
    attention = 4 * 2 * h + 4 * HEADS
    assert per_token("opt") == norms + attention + 2 * inner + 2 * h


def test_one_mask_with_position_biases_serves_every_block() -> None:
    """Falcon's biases fill one 16-bit mask of every head, which blocks save without a copy of their own."""
    config = tiny("falcon", **RW)
    assert growth(lambda n: play(prepared(config), n).forward_end_requested)[1] == 2 * HEADS
    assert growth(lambda n: saved_by_a_block("falcon", n, **RW))[1] == 0


def test_one_key_head_means_scores_in_full() -> None:
    """A single key head fits no fused kernel: each block keeps fp32 weights of every head and pair."""
    assert growth(lambda n: saved_by_a_block("falcon", n))[1] == 4 * HEADS
    # the efficient kernel keeps the boolean mask turned into 16-bit numbers, one for all heads
    assert growth(lambda n: saved_by_a_block("falcon", n, multi_query=False))[1] == 2


def test_saved_bytes_of_a_bloom_block() -> None:
    """Bloom's GELU keeps its input alone; of the scores the fp32 softmax and its 16-bit copy stay."""
    h, inner = HIDDEN, 4 * HIDDEN
    norms = 2 * (2 * h + 8) + 2 * 2 * h
    attention = 2 * 3 * h + 2 * h
    assert growth(lambda n: saved_by_a_block("bloom", n)) == (norms + attention + 2 * 2 * inner, 6 * HEADS)


# ---- methods


def test_conv1d_is_packed_and_falcons_linears_are_not() -> None:
    """A 4-bit load packs GPT-2's Conv1D; Falcon's own class of linear stays dense, and the model says so."""
    gpt2, falcon = prepared(tiny("gpt2"), "qlora"), prepared(tiny("falcon"), "qlora")
    packed = {type(module).__name__ for _, module in gpt2.runs[0].block.walk()}
    assert "Linear4bit" in packed
    assert not any(isinstance(module, Linear4bit) for _, module in falcon.runs[0].block.walk())
    assert any("dense" in note for note in falcon.notes)


def test_a_packed_linears_bias_is_loaded_in_fp32_and_runs_in_16_bits() -> None:
    """Preparation casts biases to fp32, the first forward pass casts those of packed linears back."""
    block = prepared(tiny("opt"), "qlora").runs[0].block
    bias = block.child("fc1.base_layer").parameters["bias"]
    assert (bias.dtype, bias.loaded_dtype) == (BF16, FP32)


def test_checkpointed_embeddings_ask_for_a_gradient() -> None:
    """Under checkpointing frozen embeddings and their gradient stay to the end of the step."""
    plain, checkpointed = (
        play(prepared(tiny("opt", dropout=0.0), "lora"), 128, 2, checkpointing) for checkpointing in (False, True)
    )
    embedded = 2 * 128 * HIDDEN * 2
    assert checkpointed.end_bytes - plain.end_bytes == 2 * embedded


# ---- blocks that stand for many


CONFIGS = [
    tiny("gpt2", n_layer=7),
    tiny("gptj", n_layer=7),
    tiny("bloom", n_layer=7),
    tiny("gpt_neox", num_hidden_layers=7, hidden_dropout=0.1),
    tiny("opt", num_hidden_layers=7, do_layer_norm_before=False, word_embed_proj_dim=96),
    tiny("phi", num_hidden_layers=7),
    tiny("falcon", num_hidden_layers=7),
    tiny("falcon", **{**RW, "num_hidden_layers": 7}),
    tiny("falcon", **{**GROUPED, "num_hidden_layers": 7}),
]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config["model_type"]))
def test_one_block_stands_for_all(config: dict[str, Any], method: str, checkpointing: bool, attention: str) -> None:
    """Levels read from one or two played blocks are those of a model whose blocks are all played."""
    autocast = None if method == "full" else BF16
    shared, single = prepared(config, method), prepared(config, method)
    single.runs = [
        BlockRun(deepcopy(run.block), 1, run.first_index + i, run.path)
        for run in single.runs
        for i in range(run.count)
    ]
    one, all_ = (play(model, 128, 2, checkpointing, autocast, attention) for model in (shared, single))
    assert len(one.plays) <= 3 < len(all_.plays)
    assert one.forward_end_requested == all_.forward_end_requested
    assert one.end_bytes == all_.end_bytes
    for phase in ("forward", "loss", "backward"):
        assert one.phases[phase].bytes == all_.phases[phase].bytes
