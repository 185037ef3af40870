"""Quantisers: what they keep, what they take by default, which methods sit on them, and what configs say."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from peftplan import Request, estimate
from peftplan.errors import BadInput
from peftplan.methods import METHODS
from peftplan.methods.quantizers import QUANTIZERS, Asked
from peftplan.methods.quantizers.asked import format_of, named_in, read_from, skipped
from peftplan.request import QuantName
from peftplan.resolve import resolve
from peftplan.sources import SOURCES

LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}
GPT_OSS = {
    "model_type": "gpt_oss",
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 1000,
}
TRAINING = [name for name, row in QUANTIZERS.items() if row.trains]
GPU = "h100"  # runs every one of them


def packed(config: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The config of a checkpoint that says how it is packed."""
    return {**config, "quantization_config": fields}


def run(**fields: Any) -> Any:
    return estimate(Request(**{"model": LLAMA, "seq_len": 64, "gpu": GPU, **fields}))


# ---- the table


def test_the_request_names_every_quantiser_and_no_other() -> None:
    """The choices of --quant are the rows of the table, and `none`."""
    assert set(get_args(QuantName)) == {"none", *QUANTIZERS}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantiser_names_a_source_and_says_what_becomes_of_it(name: str) -> None:
    """A row cites what was read, and says in words what the forward dequantises and what a merge does."""
    row = QUANTIZERS[name]
    assert row.source in SOURCES
    assert all((row.summary, row.forward, row.merging))
    assert row.trains or row.refusal
    assert row.default_bits in row.bits
    assert row.default_block_size in row.block_sizes


# ---- storage


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        # 4096 x 11008: words of 32 bits along the input, and g_idx, zeros, scales, two tables of eight shifts
        ("gptq", Asked(), 11008 * 4096 // 2 + 86 * 4096 // 2 + 2 * 86 * 4096 + 4 * 11008 + 2 * 32),
        ("gptq", Asked(bits=3), 4 * 1032 * 4096 + 4 * 86 * 384 + 2 * 86 * 4096 + 4 * 11008 + 2 * 4 * 36),
        ("gptq", Asked(block_size=-1), 11008 * 4096 // 2 + 4096 // 2 + 2 * 4096 + 4 * 11008 + 2 * 32),
        ("awq", Asked(), 11008 * 4096 // 2 + 86 * 4096 // 2 + 2 * 86 * 4096),
        ("hqq", Asked(), 11008 * 4096 // 2 + 2 * 2 * 11008 * 4096 // 64),
        ("hqq", Asked(bits=1), 11008 * 4096 // 8 + 2 * 2 * 11008 * 4096 // 64),
        # ten in a word, along the first dimension of [704512, 64]: rounded up to 70452 rows
        ("hqq", Asked(bits=3), 4 * 70452 * 64 + 2 * 2 * 11008 * 4096 // 64),
        # the same of [64, 704512]: 7 rows of words hold 70
        ("hqq", Asked(bits=3, options={"axis": 0}), 4 * 7 * 704512 + 2 * 2 * 11008 * 4096 // 64),
        ("aqlm", Asked(), 2 * 65536 * 8 + 2 * 4096 * 11008 // 8 + 2 * 4096),
        ("aqlm", Asked(options={"codebooks": "2x8"}), 2 * 2 * 256 * 8 + 2 * 4096 * 11008 // 8 + 2 * 4096),
        ("fp8", Asked(), 11008 * 4096 + 4 * 32 * 86),
        ("mxfp4", Asked(), 11008 * 4096 // 2 + 11008 * 4096 // 32),
    ],
)
def test_packed_weights_take_what_their_tensors_do(name: str, asked: Asked, expected: int) -> None:
    """The bytes of a [4096, 11008] weight are those of its packed numbers, scales, zeros, groups and tables."""
    assert format_of(name, asked).num_bytes(4096, 11008) == expected


def test_blocks_that_do_not_fill_are_counted_whole() -> None:
    """fp8 scales and mxfp4 exponents are rounded up to whole blocks, for each of stacked experts."""
    assert format_of("fp8", Asked()).num_bytes(130, 129, 3) == 3 * (130 * 129 + 4 * 4)
    assert format_of("mxfp4", Asked()).num_bytes(2, 33, 5) == 5 * 2 * (32 + 2)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("nf4", 4.12, 4.14), ("gptq", 4.15, 4.17), ("awq", 4.15, 4.16), ("hqq", 4.49, 4.51), ("aqlm", 2.18, 2.2)],
)
def test_bits_for_a_weight_include_what_is_kept_beside_it(name: str, low: float, high: float) -> None:
    """A packed weight takes more than its bits: scales, zeros and codebooks come to it."""
    assert low < format_of(name, Asked()).bits_per_param(4096, 11008) < high


# ---- runs


@pytest.mark.parametrize("name", TRAINING)
def test_lora_runs_on_every_base_that_trains(name: str) -> None:
    """LoRA has layers over the linears of every quantiser, and the state is smaller than in 16 bits."""
    options = {"codebooks": "2x8"} if name == "aqlm" else {}  # the others' are larger than this model's linears
    assert run(quant=name, quant_options=options).memory.resident.weights < run().memory.resident.weights


def test_gptq_saves_dense_weights_for_backward() -> None:
    """Without checkpointing a GPTQ base holds its dequantised linears in 16 bits until their backward."""
    options = {"checkpointing": False, "targets": ["q_proj"], "precision": "fp16", "base_dtype": "fp16"}
    more = run(quant="gptq", **options).memory.activations_bytes - run(**options).memory.activations_bytes
    # of the first block nothing before its queries asks for a gradient, keys and values not at all
    linears = 4 * 256 * 256 + 3 * 256 * 512
    assert more == 2 * (2 * linears - 3 * 256 * 256)


def test_awq_is_loaded_in_fp16() -> None:
    """transformers casts an AWQ model to fp16 where bf16 is asked for, and the answer's request says so."""
    assert run(quant="awq").request["base_dtype"] == "fp16"


def test_old_gpus_get_fp8_weights_dense() -> None:
    """Below compute capability 8.9 an fp8 base is dequantised while it is loaded, as transformers does."""
    old = run(quant="fp8", gpu="a100-80")
    assert old.request["quant"] == "none"
    assert old.memory.resident.weights == run(gpu="a100-80").memory.resident.weights
    assert any("dequantises the weights" in note for note in old.notes)


def test_preparing_for_k_bits_spares_some_bases() -> None:
    """peft's preparation casts norms and embeddings of an AWQ base to fp32, and leaves those of GPTQ's."""
    for name, casts in (("gptq", False), ("hqq", False), ("aqlm", False), ("awq", True), ("fp8", True)):
        prepared, plain = run(quant=name, kbit_prepare=True), run(quant=name)
        assert (prepared.memory.resident.weights > plain.memory.resident.weights) is casts


def test_gptq_packs_linears_of_the_blocks_only() -> None:
    """An answer's notes count what a load leaves dense: of a Llama the embeddings, the head and the norms."""
    notes = " ".join(run(quant="gptq").notes)
    assert f"{2 * 1000 * 256 + 5 * 256:,} of" in notes


def test_conv1d_is_packed_by_some() -> None:
    """GPT-2's Conv1D is no nn.Linear: bitsandbytes and optimum's GPTQ pack it, the others leave it dense."""
    dense = run(model="gpt2").memory.resident.weights
    for name, packs in (
        ("nf4", True),
        ("gptq", True),
        ("awq", False),
        ("hqq", False),
        ("aqlm", False),
        ("fp8", False),
    ):
        assert (run(model="gpt2", quant=name).memory.resident.weights < dense) is packs


# ---- which method sits on which base


@pytest.mark.parametrize(
    ("method", "quant", "words"),
    [
        ("dora", "gptq", "plain LoRA only"),
        ("dora", "awq", "plain LoRA only"),
        ("dora", "aqlm", "plain LoRA only"),
        ("dora", "fp8", "plain LoRA only"),
        ("pissa", "gptq", "plain LoRA only"),
        ("loha", "hqq", "no layers of it"),
        ("ia3", "gptq", "no layers of it"),
        ("fourierft", "awq", "no layers of it"),
        ("adalora", "awq", "no layers of it"),
        ("full", "gptq", "packs frozen weights"),
    ],
)
def test_methods_without_layers_over_a_base_are_refused(method: str, quant: str, words: str) -> None:
    """Where peft has no layer of a method over such linears, one line says so and what to do."""
    with pytest.raises(BadInput, match=words) as refused:
        run(method=method, quant=quant)
    assert "\n" not in str(refused.value)
    assert "take --method" in str(refused.value) or "use --method" in str(refused.value)


@pytest.mark.parametrize(
    ("method", "quant"),
    [("dora", "hqq"), ("adalora", "gptq"), ("adalora", "fp8"), ("miss", "awq"), ("oft", "aqlm"), ("ia3", "fp8")],
)
def test_methods_with_layers_over_a_base_are_answered(method: str, quant: str) -> None:
    """Where peft has such layers, the run is answered."""
    assert run(method=method, quant=quant).memory.peak_allocated_bytes > 0


@pytest.mark.parametrize("method", ["prompt-tuning", "ln-tuning", "trainable-tokens"])
@pytest.mark.parametrize("quant", ["gptq", "awq", "hqq", "aqlm", "fp8"])
def test_methods_beside_linears_run_on_every_base(method: str, quant: str) -> None:
    """What touches no linear needs nothing of the base but that gradients pass through it."""
    options = {"num_tokens": 2} if method == "trainable-tokens" else {}
    assert run(method=method, quant=quant, method_options=options).memory.peak_allocated_bytes > 0


def test_mxfp4_does_not_train() -> None:
    """Packed experts have no backward: the refusal says that they are dequantised if nothing is asked for."""
    with pytest.raises(BadInput, match="leave --quant out"):
        run(model=GPT_OSS, quant="mxfp4")


def test_adapters_of_expert_weights_in_fp8_are_refused() -> None:
    """peft adds to packed experts without their scales: targets that name them are refused with the remedy."""
    config = {**GPT_OSS, "model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 128}
    with pytest.raises(BadInput, match="give --targets attention"):
        run(model=config, quant="fp8")
    experts = 2 * 4 * 3 * 128 * 256
    attention = run(model=config, quant="fp8", targets="attention")
    assert run(model=config, targets="attention").memory.resident.weights - experts > (
        attention.memory.resident.weights
    )


def test_8_bit_adapters_of_an_fp8_base_are_refused() -> None:
    """Without its cast to fp32 peft would make adapters in the packed weights' own type."""
    with pytest.raises(BadInput, match="leave --adapter-dtype fp32"):
        run(quant="fp8", adapter_dtype="bf16")


def test_all_linear_is_said_to_find_nothing() -> None:
    """peft's all-linear finds nn.Linear alone: over other bases a note says that modules have to be named."""
    words = "name the modules"
    for name, told in (
        ("gptq", True),
        ("awq", True),
        ("hqq", True),
        ("aqlm", True),
        ("fp8", False),
        ("nf4", False),
    ):
        assert any(words in note for note in run(quant=name).notes) is told
    assert not any(words in note for note in run(quant="gptq", targets=["q_proj"]).notes)


# ---- refusals that stood before


def test_int8_carries_dora() -> None:
    """peft 0.21 has DoRA over 8-bit linears: the run is answered."""
    assert run(method="dora", quant="int8").memory.peak_allocated_bytes > 0


def test_loftq_with_a_packed_base_is_refused() -> None:
    """LoftQ quantises dense weights itself: a packed base is refused with the remedy."""
    with pytest.raises(BadInput, match="leave --quant out"):
        run(method="loftq", quant="nf4")


def test_dropout_on_experts_kept_as_parameters_is_refused() -> None:
    """peft adapts expert weights without dropout only."""
    config = {**GPT_OSS, "model_type": "mixtral"}
    with pytest.raises(BadInput, match="give --dropout 0"):
        run(model=config, dropout=0.1)


def test_prefix_tuning_with_checkpointing_is_refused() -> None:
    """Checkpointing drops the cache that prefixes stand in."""
    with pytest.raises(BadInput, match="add --no-checkpointing"):
        run(method="prefix-tuning")


# ---- what a config states


@pytest.mark.parametrize(
    ("stated", "name", "asked"),
    [
        ({"quant_method": "gptq", "bits": 8, "group_size": 32, "desc_act": True}, "gptq", (8, 32)),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}, "awq", (4, 64)),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, "awq", (4, 128)),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", (None, 128)),
        ({"quant_method": "mxfp4"}, "mxfp4", (None, None)),
        (
            {"quant_method": "aqlm", "num_codebooks": 2, "nbits_per_codebook": 8, "in_group_size": 8},
            "aqlm",
            (None, 8),
        ),
        (
            {
                "quant_method": "hqq",
                "quant_config": {"weight_quant_params": {"nbits": 2, "group_size": 16, "axis": 0}},
            },
            "hqq",
            (2, 16),
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4", (None, None)),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8", (None, None)),
    ],
)
def test_a_config_says_how_its_checkpoint_is_packed(stated: dict[str, Any], name: str, asked: Any) -> None:
    """The quantiser and its settings are read from quantization_config, by each library's own names for them."""
    config = packed(LLAMA, **stated)
    assert named_in(config) == name
    found = read_from(config)
    assert (found.bits, found.block_size) == asked


def test_a_packed_checkpoint_is_taken_as_it_is_unless_told_otherwise() -> None:
    """Its format counts, with a note; --quant none and other formats are taken instead, the latter with a note."""
    config = packed(LLAMA, quant_method="gptq", bits=8, group_size=32)
    taken = run(model=config)
    assert (taken.request["quant"], taken.request["quant_bits"], taken.request["quant_block_size"]) == (
        "gptq",
        8,
        32,
    )
    assert any("quantization_config" in note for note in taken.notes)
    assert run(model=config, quant_bits=4).request["quant_bits"] == 4
    assert run(model=config, quant="none").memory.resident == run().memory.resident
    other = run(model=config, quant="nf4")
    assert other.memory.resident == run(quant="nf4").memory.resident
    assert any("does not load as nf4" in note for note in other.notes)


def test_an_answered_request_means_the_same_when_it_is_asked_again() -> None:
    """The filled request of a packed checkpoint, and of one taken dense, give the same bytes again."""
    config = packed(LLAMA, quant_method="gptq", bits=8)
    for fields in ({}, {"quant": "none"}):
        first = run(model=config, **fields)
        again = estimate(Request(**first.request))
        assert again.memory == first.memory


def test_modules_that_a_config_lists_stay_dense() -> None:
    """`modules_to_not_convert` keeps linears as they are, by the beginning or the end of their names."""
    config = packed(LLAMA, quant_method="awq", modules_to_not_convert=["down_proj"])
    some, all_of_them = run(model=config), run(quant="awq")
    spared = 2 * 256 * 512
    assert some.memory.resident.weights - all_of_them.memory.resident.weights == 2 * spared - 2 * (
        format_of("awq", Asked()).num_bytes(256, 512)
    )
    assert skipped("model.layers.1.mlp", ("model.layers.1",))
    assert not skipped("model.layers.11.mlp", ("model.layers.1",))


BROKEN = [
    ([], "is [], and a mapping of settings is needed"),
    ("gptq", "is 'gptq', and a mapping of settings is needed"),
    ({"quant_method": "gptq", "bits": 7}, "says 7 for gptq's bits, which is one of 2, 3, 4, 8"),
    ({"quant_method": "gptq", "bits": 4.0}, "says 4.0 for gptq's bits"),
    ({"quant_method": "gptq", "bits": "4"}, "says '4' for gptq's bits"),
    ({"quant_method": "awq", "group_size": -5}, "says -5 for awq's group size"),
    ({"quant_method": "fp8", "weight_block_size": [128, 64]}, "cannot be read as fp8's"),
    ({"quant_method": "awq", "modules_to_not_convert": "lm_head"}, "'lm_head', which is no list of modules' names"),
    ({"quant_method": "awq", "modules_to_not_convert": [None]}, "[None], which is no list of modules' names"),
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf5"}, "'nf5', and there are nf4, fp4"),
]


@pytest.mark.parametrize(("stated", "told"), BROKEN)
def test_a_broken_quantization_config_is_refused_by_what_it_says(stated: Any, told: str) -> None:
    """One line tells the value and what is allowed, and --quant none passes it by."""
    config = {**LLAMA, "quantization_config": stated}
    with pytest.raises(BadInput) as refused:
        run(model=config)
    assert told in str(refused.value)
    assert "--quant none" in str(refused.value)
    assert run(model=config, quant="none").memory.resident == run().memory.resident


def test_a_bitsandbytes_checkpoint_says_its_scales_and_its_dense_modules() -> None:
    """Double quantisation and modules left dense count as the config states them, unless the request says."""
    stated = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    once = run(model=packed(LLAMA, **stated))
    assert once.memory.resident == run(quant="nf4", double_quant=False).memory.resident
    assert estimate(Request(**once.request)).memory == once.memory
    twice = packed(LLAMA, **stated, bnb_4bit_use_double_quant=True)
    assert run(model=twice).memory.resident == run(quant="nf4").memory.resident
    assert run(model=twice, double_quant=False).memory.resident == once.memory.resident
    spared = run(model=packed(LLAMA, **stated, llm_int8_skip_modules=["down_proj"]))
    assert spared.memory.resident.weights > once.memory.resident.weights + 2 * 256 * 512


def test_mxfp4_checkpoints_are_dequantised_to_train() -> None:
    """gpt-oss as published: experts in 16 bits from the load on, which reads less and holds more on the way."""
    config = packed(GPT_OSS, quant_method="mxfp4", modules_to_not_convert=["lm_head"])
    as_published, dense = run(model=config, targets="attention"), run(model=GPT_OSS, targets="attention")
    assert as_published.memory.resident == dense.memory.resident
    assert any("dequantised to 16 bits" in note for note in as_published.notes)
    parts = {
        plan: resolve(Request(model=plan_of, targets="attention"))
        for plan, plan_of in (("a", config), ("b", GPT_OSS))
    }
    assert parts["a"].method_spec.loaded_from is not None
    assert parts["b"].method_spec.loaded_from is None


def test_full_fine_tuning_of_a_packed_checkpoint_is_refused() -> None:
    """Weights that cannot be dequantised while they are loaded cannot train."""
    with pytest.raises(BadInput, match="before it was packed"):
        run(model=packed(LLAMA, quant_method="gptq", bits=4), method="full")


def test_an_unknown_format_is_refused_by_name() -> None:
    """A checkpoint packed by something else is not counted as what it is not."""
    with pytest.raises(BadInput, match="says quant_method vptq"):
        run(model=packed(LLAMA, quant_method="vptq"))
    assert run(model=packed(LLAMA, quant_method="vptq"), quant="none").memory.resident == run().memory.resident


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quant": "gptq", "quant_bits": 1}, "it has 2, 3, 4, 8"),
        ({"quant": "awq", "quant_block_size": 512}, "it groups -1, 16, 32, 64, 128"),
        ({"quant": "hqq", "quant_options": {"axes": 0}}, "it has axis"),
        ({"quant": "aqlm", "quant_options": {"codebooks": "3x7"}}, "codebooks=3x7 is not allowed"),
        ({"quant": "nf4", "quant_options": {"axis": 0}}, "no options of its own"),
        ({"quant_bits": 4}, "--quant-bits is of packed weights"),
        ({"quant": "aqlm", "base_dtype": "fp32"}, "16 bits only"),
    ],
)
def test_settings_that_a_quantiser_does_not_take_are_refused(fields: dict[str, Any], words: str) -> None:
    """One line says what was given and what is allowed."""
    with pytest.raises(BadInput, match=words) as refused:
        run(**fields)
    assert "\n" not in str(refused.value)


def refusal_of(**fields: Any) -> str:
    """What a run is refused with; empty where it is answered."""
    try:
        run(**fields)
    except BadInput as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("quant", QUANTIZERS)
def test_every_method_on_every_base_is_answered_or_refused_in_a_line(quant: str) -> None:
    """No pair of method and quantiser fails in another way."""
    told = {name: refusal_of(method=name, quant=quant, checkpointing=name != "prefix-tuning") for name in METHODS}
    assert not [method for method, words in told.items() if "\n" in words]
    assert bool(told["lora"]) is not QUANTIZERS[quant].trains
