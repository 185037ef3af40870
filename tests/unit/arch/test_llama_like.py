"""The Llama-like families: counts, targets, refusals, windows, and what one block saves for each token."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from peftplan.arch import build_model
from peftplan.arch.llama_rows import ROWS
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

TINY: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": 8192,
}


def family_of(record: ModelRecord) -> str:
    """The model_type of a record's language model."""
    config = record.config
    text = config.get("text_config")
    return str((text or config)["model_type"])


RECORDS = [record for record in all_models() if family_of(record) in ROWS]


def tiny(family: str, **more: Any) -> dict[str, Any]:
    """A small config of a family."""
    return {"model_type": family, **TINY, **more}


def prepared(config: dict[str, Any], method: str = "full", adapter: DType = FP32) -> ModelSpec:
    """A model as a method leaves it."""
    model = build_model(config)
    quant = QuantFormat("nf4") if method == "qlora" else None
    spec = MethodSpec(8, 0.0, "all-linear", "none", (), adapter, BF16, quant, method == "qlora")
    METHODS[method].apply(model, spec)
    return model


def play(
    model: ModelSpec,
    length: int = 128,
    batch: int = 2,
    attention: str = "sdpa",
    checkpointing: bool = False,
    autocast: DType | None = None,
) -> Timeline:
    """One step of a small batch."""
    step = StepSpec(
        batch,
        length,
        checkpointing,
        autocast,
        attention,
        "standard",
        False,
        False,
        False,
        "adamw",
        (8, 0),
    )
    return play_step(model, step)


def bytes_per_token(family: str, attention: str = "sdpa", **more: Any) -> float:
    """What one more block of full 16-bit training saves for one more token."""

    def saved(layers: int, length: int) -> int:
        model = prepared(tiny(family, num_hidden_layers=layers, **more))
        return play(model, length, 1, attention).forward_end_requested

    longer, shorter = (saved(4, n) - saved(3, n) for n in (256, 128))
    return (longer - shorter) / 128


# ---- counts and names


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
def test_the_count_is_the_catalogues(record: ModelRecord) -> None:
    """Every model's parameters add up to what transformers builds."""
    assert build_model(record.config).num_params() == record.num_params


@pytest.mark.parametrize("family", ROWS)
@pytest.mark.parametrize("word", ["attention", "mlp", "all-linear"])
def test_targets_name_linears_of_every_layer(family: str, word: str) -> None:
    """The three words resolve in every family, once a layer and without the output head."""
    model = build_model(tiny(family))
    names = [name for _, name, _ in matched(model, word)]
    assert names
    assert not any("lm_head" in name for name in names)
    counts = {count for module, count, _ in model.groups()[1:]}
    assert sum(counts) <= model.num_layers


def test_absent_keys_take_the_config_classs_defaults() -> None:
    """A config that names only its family is that family's default model."""
    model = build_model({"model_type": "gemma3_text"})
    assert (model.num_layers, model.vocab_size, model.max_seq_len) == (26, 262208, 131072)
    assert [run.count for run in model.runs] == [5, 1] * 4 + [2]


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", {"num_key_value_heads": 3}),
        ("llama", {"head_dim": 63}),
        ("llama", {"hidden_size": -1}),
        ("llama", {"hidden_act": "unheard-of"}),
        ("qwen3", {"layer_types": ["full_attention"]}),
        ("qwen3", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 4}),
        ("gemma2", {"sliding_window": None}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
        ("phi3", {"partial_rotary_factor": 1.5}),
        ("mistral", {"sliding_window": 0}),
    ],
)
def test_unusable_values_are_refused(family: str, change: dict[str, Any]) -> None:
    """A value that the family cannot have is one clear line that names its key."""
    with pytest.raises(BadInput, match=next(iter(change))):
        build_model(tiny(family, **change))


def test_gemma2_is_played_as_eager_where_transformers_has_no_sdpa() -> None:
    """Gemma 2 caps its scores, so that sdpa and eager are one, and the model says so."""
    model = prepared(tiny("gemma2"))
    assert "sdpa" not in model.attention_kinds
    assert any("eager" in note for note in model.notes)
    ends = [play(prepared(tiny("gemma2")), attention=a).end_bytes for a in ("sdpa", "eager")]
    assert ends[0] == ends[1]


# ---- what a block saves for a token


H, HKV, D, WIDTH, INNER = 4, 2, 64, 192, 320
Q, KV = H * D, HKV * D
LLAMA = 16 * WIDTH + 4 * Q + 4 * KV + 4 * H + 8 * INNER + 8


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", LLAMA),
        ("mistral", LLAMA),
        ("qwen2", LLAMA),
        # a norm over each head: its input in fp32, the same normed in 16 bits, one number a head
        ("qwen3", LLAMA + 6 * Q + 6 * KV + 4 * H + 4 * HKV),
        # the normed input stays in fp32
        ("gemma", LLAMA + 4 * WIDTH),
        # four norms, two of them with an output that nothing keeps, and norms over heads
        ("gemma3_text", LLAMA + 20 * WIDTH + 8 * Q + 8 * KV + 4 * H + 4 * HKV + 8),
        # the fused projection lives as long as the values in it; the result is copied out of its layout
        ("phi3", LLAMA + 4 * Q + 2 * KV),
        ("granite", LLAMA),
    ],
)
def test_saved_bytes_per_token_of_full_training(family: str, expected: int) -> None:
    """One block of bf16 training saves what the tensors of its program add up to."""
    assert bytes_per_token(family) == expected


def test_eager_attention_saves_matrices_of_scores() -> None:
    """Eager attention keeps the fp32 softmax and its 16-bit copy: six bytes a pair of tokens and head."""
    config = tiny("llama", num_key_value_heads=4)
    sdpa, eager = (
        play(prepared(config), 128, 1, attention).forward_end_requested for attention in ("sdpa", "eager")
    )
    scores, rows_and_random_state = 6 * H * 128 * 128, 4 * H * 128 + 24
    assert eager - sdpa == 4 * (scores - rows_and_random_state)


# ---- windows


def test_a_window_shorter_than_the_sequence_makes_a_mask_that_each_layer_saves() -> None:
    """From the window on, sdpa takes a mask: the efficient kernel keeps it in 16 bits, layer by layer."""
    config = tiny("mistral", num_key_value_heads=4)
    inside = play(prepared({**config, "sliding_window": 129})).forward_end_requested
    beyond = play(prepared({**config, "sliding_window": 128})).forward_end_requested
    mask, random_state = 2 * 2 * 128 * 128, 24
    assert beyond - inside == 4 * (mask - random_state)


def test_flash_makes_no_mask_for_a_window() -> None:
    """The flash-attention package takes the window itself, and saves no offset of random numbers."""
    config = tiny("mistral", sliding_window=64)
    flash = play(prepared(config), attention="flash").forward_end_requested
    plain = play(prepared({**config, "sliding_window": None})).forward_end_requested
    assert plain - flash == 4 * 8


def test_flash_is_refused_where_the_family_has_none() -> None:
    """Flash attention is asked for by name, so that no other form quietly takes its place."""
    model = prepared(tiny("llama"))
    model.attention_kinds = ("sdpa", "eager")
    with pytest.raises(BadInput, match="no flash attention for llama"):
        play(model, attention="flash")


def test_flash_refuses_fp32_and_wide_heads() -> None:
    """The package has no fp32 kernels and none for heads above 256 values: one line each."""
    model = build_model(tiny("llama"))
    METHODS["full"].apply(model, MethodSpec(8, 0.0, "all-linear", "none", (), FP32, FP32, None, False))
    with pytest.raises(BadInput, match="no fp32 kernels"):
        play(model, attention="flash")
    with pytest.raises(BadInput, match="256"):
        play(prepared(tiny("llama", head_dim=320)), attention="flash")


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize(
    "config",
    [
        tiny("gemma3_text", num_hidden_layers=14, sliding_window=64),
        tiny("gemma2", num_hidden_layers=7, sliding_window=64),
        tiny("qwen3", num_hidden_layers=9, sliding_window=64, use_sliding_window=True, max_window_layers=4),
    ],
    ids=lambda config: str(config["model_type"]),
)
def test_alternating_blocks_read_as_if_each_were_played(
    config: dict[str, Any], method: str, checkpointing: bool, attention: str
) -> None:
    """Levels of a model with two kinds of layers are those of a model whose layers are all played."""
    autocast = None if method == "full" else BF16
    shared, single = prepared(config, method), prepared(config, method)
    single.runs = [
        BlockRun(deepcopy(run.block), 1, run.first_index + i, run.path)
        for run in single.runs
        for i in range(run.count)
    ]
    one, all_ = (
        play(model, attention=attention, checkpointing=checkpointing, autocast=autocast)
        for model in (shared, single)
    )
    assert len(one.plays) <= 4 < len(all_.plays)
    assert one.forward_end_requested == all_.forward_end_requested
    assert one.end_bytes == all_.end_bytes
    for phase in ("forward", "loss", "backward"):
        assert one.phases[phase].bytes == all_.phases[phase].bytes
