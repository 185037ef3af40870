"""Mixtures of experts: counts, what peft adapts of them, refusals, and what one block saves for each token."""

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
from peftplan.methods.lora_parameter import LoraParameter
from peftplan.specs.formats import BF16, FP32, DType, QuantFormat
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.run import StepSpec

HIDDEN, INNER, EXPERTS, TOP_K, VOCAB = 64, 32, 4, 2, 128
COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": TOP_K,
    "vocab_size": VOCAB,
}
LATENT: dict[str, Any] = {
    **COMMON,
    "num_key_value_heads": 4,
    "intermediate_size": 96,
    "moe_intermediate_size": INNER,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
TINY: dict[str, dict[str, Any]] = {
    "mixtral": {**COMMON, "intermediate_size": 96, "num_local_experts": EXPERTS},
    "qwen2_moe": {
        **COMMON,
        "intermediate_size": 96,
        "moe_intermediate_size": INNER,
        "shared_expert_intermediate_size": 48,
        "num_experts": EXPERTS,
        "mlp_only_layers": [0],
    },
    "qwen3_moe": {
        **COMMON,
        "head_dim": 16,
        "intermediate_size": 96,
        "moe_intermediate_size": INNER,
        "num_experts": EXPERTS,
        "mlp_only_layers": [0],
    },
    "gpt_oss": {**COMMON, "head_dim": 16, "intermediate_size": 96, "num_local_experts": EXPERTS},
    "deepseek_v2": {**LATENT, "n_routed_experts": EXPERTS, "n_shared_experts": 2, "n_group": 1},
    "deepseek_v3": {**LATENT, "n_routed_experts": 8, "n_shared_experts": 1, "n_group": 2, "topk_group": 1},
}
WRAPPED = ("mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3")
RECORDS = [record for record in all_models() if record.config["model_type"] in TINY]


def tiny(family: str, **more: Any) -> dict[str, Any]:
    """A small config of a family."""
    return {"model_type": family, **TINY[family], **more}


def prepared(
    config: dict[str, Any],
    method: str = "full",
    targets: str = "all-linear",
    dropout: float = 0.0,
    bias: str = "none",
    kbit_prepare: bool = True,
) -> ModelSpec:
    """A model as a method leaves it, adapters of rank 8 in fp32."""
    model = build_model(config)
    quant = QuantFormat("nf4") if method == "qlora" else None
    prepare = kbit_prepare and method == "qlora"
    spec = MethodSpec(8, dropout, targets, bias, (), FP32, BF16, quant, prepare)
    METHODS[method].apply(model, spec)
    return model


def play(
    model: ModelSpec,
    length: int = 128,
    batch: int = 2,
    checkpointing: bool = False,
    autocast: DType | None = None,
    attention: str = "sdpa",
) -> Timeline:
    """One step of a small batch."""
    shape = (batch, length, checkpointing, autocast, attention)
    return play_step(model, StepSpec(*shape, "standard", False, False, False, "adamw", (8, 0)))


def trained(model: ModelSpec) -> int:
    """Parameters that train, over all layers."""
    return sum(p.numel * count for _, p, count in model.parameters() if p.edge is not None)


# ---- counts and names


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
def test_the_count_is_the_catalogues(record: ModelRecord) -> None:
    """Every model's parameters add up to what transformers builds."""
    assert build_model(record.config).num_params() == record.num_params


@pytest.mark.parametrize(
    ("name", "active"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", 12_879_925_248),
        ("Qwen/Qwen3-30B-A3B", 3_353_032_704),
        ("Qwen/Qwen1.5-MoE-A2.7B", 2_689_173_504),
        ("openai/gpt-oss-20b", 4_187_440_704),
        ("deepseek-ai/DeepSeek-V3", 37_552_282_624),
    ],
)
def test_active_parameters_leave_out_the_experts_a_token_does_not_visit(name: str, active: int) -> None:
    """All weights less those of the unvisited experts: about what the models' names and cards say."""
    record = next(record for record in RECORDS if record.id == name)
    assert record.num_params - build_model(record.config).inactive_params == active


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("mixtral", [3]),
        ("qwen2_moe", [1, 2]),
        ("qwen3_moe", [1, 2]),
        ("gpt_oss", [1, 1, 1]),
        ("deepseek_v2", [1, 2]),
        ("deepseek_v3", [1, 2]),
    ],
)
def test_layers_of_a_kind_form_runs(family: str, sizes: list[int]) -> None:
    """Dense and sparse layers, and those with a window, are runs of their own."""
    assert [run.count for run in build_model(tiny(family)).runs] == sizes


def test_absent_keys_take_the_config_classs_defaults() -> None:
    """A config that names only its family is that family's default model."""
    model = build_model({"model_type": "deepseek_v3"})
    assert model.num_params() == 671_026_404_352
    assert [run.count for run in model.runs] == [3, 58]
    assert build_model({"model_type": "gpt_oss"}).num_params() == 116_829_156_672


# ---- what peft adapts: counts of real peft 0.21 on the same tiny models, rank 8

COUNTS = [
    ("mixtral", "all-linear", 76896),
    ("mixtral", "attention", 10752),
    ("mixtral", "w1,w2,w3", 64512),
    ("mixtral", "mlp", 64512),
    ("mixtral", "gate", 1632),
    ("mixtral", "gate,q_proj", 4704),
    ("mixtral", r".*\.(q_proj|o_proj)", 6144),
    ("qwen2_moe", "all-linear", 21008),
    ("qwen2_moe", "attention", 10752),
    ("qwen2_moe", "gate_proj,up_proj,down_proj", 9216),
    ("qwen2_moe", "gate_up_proj,down_proj", 3072),
    ("qwen2_moe", "shared_expert_gate", 1040),
    ("qwen3_moe", "all-linear", 34368),
    ("qwen3_moe", "gate_proj,up_proj,down_proj", 22528),
    ("qwen3_moe", "down_proj", 6144),
    ("qwen3_moe", "mlp.gate", 1088),
    ("qwen3_moe", r".*layers\.1\.mlp\.experts\.(gate|up|down)_proj", 22528),
    ("gpt_oss", "all-linear", 10752),
    ("gpt_oss", "gate,q_proj", 3072),
    ("deepseek_v2", "all-linear", 37248),
    ("deepseek_v2", "attention", 13632),
    ("deepseek_v2", "mlp", 22528),
    ("deepseek_v2", "gate,q_proj", 1088),
    ("deepseek_v3", "all-linear", 59840),
    ("deepseek_v3", "attention", 13632),
    ("deepseek_v3", r".*mlp\..*proj", 45056),
    ("deepseek_v3", "kv_b_proj", 3456),
    ("deepseek_v3", "lm_head", 1536),
]


@pytest.mark.parametrize(("family", "targets", "count"), COUNTS)
def test_trainable_parameters_are_real_pefts(family: str, targets: str, count: int) -> None:
    """Routers and experts are adapted where peft converts their former names, and nowhere else."""
    assert trained(prepared(tiny(family), "lora", targets)) == count


@pytest.mark.parametrize(
    ("family", "targets", "said"),
    [
        ("mixtral", "w1", "add w3"),
        ("qwen3_moe", "gate_proj", "add up_proj"),
        ("deepseek_v3", "shared_experts.up_proj", "add gate_proj"),
        ("mixtral", "gate_proj,up_proj,down_proj", "names no module"),
        ("mixtral", "gate_up_proj", "names no module"),
        ("gpt_oss", "mlp", "names no module"),
        ("qwen2_moe", "gate", "no linear"),
        ("qwen3_moe", "experts", "no linear"),
        ("gpt_oss", "router", "no linear"),
        ("deepseek_v2", "q_proj,v_proj", "names no module"),
    ],
)
def test_targets_that_peft_refuses_are_refused(family: str, targets: str, said: str) -> None:
    """Half of a fused weight, a module that is no linear, or a name of another family: one clear line."""
    with pytest.raises(BadInput, match=said):
        prepared(tiny(family), "lora", targets)


@pytest.mark.parametrize("family", TINY)
def test_dropout_is_refused_where_parameters_are_adapted(family: str) -> None:
    """peft's wrapper of parameters knows no dropout; the answer names the way out."""
    if family in WRAPPED:
        with pytest.raises(BadInput, match="--dropout 0, or --targets attention"):
            prepared(tiny(family), "lora", dropout=0.05)
    else:
        prepared(tiny(family), "lora", dropout=0.05)
    prepared(tiny(family), "lora", "attention", dropout=0.05)


def test_fused_gate_and_up_get_twice_the_rank_inside_the_other_wrapper() -> None:
    """gate_up_proj holds two former linears: its wrapper is the inner one and its rank is doubled."""
    experts = prepared(tiny("mixtral"), "lora").runs[0].block.child("mlp.experts")
    assert isinstance(experts, LoraParameter)
    inner = experts.base_layer
    assert isinstance(inner, LoraParameter)
    assert (experts.name, experts.rank, inner.name, inner.rank) == ("down_proj", 8, "gate_up_proj", 16)
    assert inner.lora_A.weight.shape == (16 * EXPERTS, HIDDEN)


def test_bias_all_trains_the_biases_of_experts_too() -> None:
    """`--bias all` goes by the name, as peft does, and leaves buffers alone."""
    more = trained(prepared(tiny("gpt_oss"), "lora", bias="all")) - trained(prepared(tiny("gpt_oss"), "lora"))
    attention, routed = 64 + 2 * 32 + HIDDEN, EXPERTS + EXPERTS * (2 * 96 + HIDDEN)
    assert more == 3 * (attention + routed)
    plain = trained(prepared(tiny("deepseek_v3"), "lora"))
    assert trained(prepared(tiny("deepseek_v3"), "lora", bias="all")) == plain


@pytest.mark.parametrize(("prepare", "size"), [(True, 4), (False, 2)])
def test_a_packed_load_leaves_experts_dense(prepare: bool, size: int) -> None:
    """Experts stay in the load format, or in fp32 after peft's preparation; the notes say so."""
    model = prepared(tiny("mixtral"), "qlora", kbit_prepare=prepare)
    experts = [p for _, p, _ in model.parameters() if len(p.shape) == 3]
    assert [p.num_bytes() for p in experts] == [size * p.numel for p in experts]
    assert any("expert weights in bf16" in note for note in model.notes)
    assert any("to fp32" in note for note in model.notes) is prepare


def test_experts_saved_whole_train_and_run() -> None:
    """A router and experts that are saved whole get copies, which take their place in the forward pass."""
    model = build_model(tiny("qwen3_moe"))
    saved = ("gate", "experts")
    METHODS["lora"].apply(model, MethodSpec(8, 0.0, "attention", "none", saved, FP32, BF16, None, False))
    router, experts = EXPERTS * HIDDEN, EXPERTS * 3 * INNER * HIDDEN
    assert trained(model) == 10752 + 2 * (router + experts)
    assert play(model).end_bytes > 0


# ---- refusals


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("mixtral", {"num_experts_per_tok": 5}),
        ("mixtral", {"num_key_value_heads": 3}),
        ("mixtral", {"sliding_window": 0}),
        ("qwen2_moe", {"mlp_only_layers": ["first"]}),
        ("qwen2_moe", {"layer_types": ["full_attention"]}),
        ("qwen3_moe", {"decoder_sparse_step": 0}),
        ("qwen3_moe", {"hidden_act": "unheard-of"}),
        ("gpt_oss", {"layer_types": ["full_attention"] * 2}),
        ("gpt_oss", {"layer_types": ["chunked_attention"] * 3}),
        ("deepseek_v2", {"topk_method": "best"}),
        ("deepseek_v2", {"num_experts_per_tok": None}),
        ("deepseek_v2", {"n_shared_experts": 0}),
        ("deepseek_v3", {"n_group": 3}),
        ("deepseek_v3", {"topk_group": 4}),
        ("deepseek_v3", {"kv_lora_rank": -1}),
    ],
)
def test_unusable_values_are_refused(family: str, change: dict[str, Any]) -> None:
    """A value that the family cannot have is one clear line that names its key."""
    with pytest.raises(BadInput, match=next(iter(change))):
        build_model(tiny(family, **change))


# ---- memory


def routed_bytes(inner: int, num_experts: int) -> int:
    """What a layer of experts saves for a token in full 16-bit training, expert weights (fp32) aside.

    Router: probabilities, chosen experts, their weights, the sum and a copy of the weights before it divides.
    Each of the k rows: its token and its place, the row, its weight, gate and up, silu, product, result, inverse.
    """
    router = 4 * num_experts + TOP_K * (8 + 4) + 4
    row = (8 + 8) + 2 * HIDDEN + 4 + 4 * inner + 2 * inner + 2 * inner + 2 * HIDDEN + 8
    return router + TOP_K * row


def test_saved_bytes_per_token_of_experts() -> None:
    """Mixtral in full: Mistral's bytes without its MLP, and the rows that the experts take."""

    def saved(layers: int, length: int) -> int:
        model = prepared(tiny("mixtral", num_hidden_layers=layers, num_key_value_heads=4))
        return play(model, length, 1).forward_end_requested

    longer, shorter = (saved(4, n) - saved(3, n) for n in (256, 128))
    attention = 16 * HIDDEN + 4 * HIDDEN + 4 * HIDDEN + 4 * 4 + 8
    assert (longer - shorter) / 128 == attention + routed_bytes(96, EXPERTS)


@pytest.mark.parametrize("family", WRAPPED)
def test_adapted_experts_are_computed_whole_and_saved(family: str) -> None:
    """Without checkpointing a layer's forward leaves one tensor of the size of every adapted weight."""

    def whole(targets: str) -> list[int]:
        timeline = play(prepared(tiny(family), "lora", targets))
        end = timeline.forward_end_clock
        return [r.nbytes for r in timeline.records if r.op == "baddbmm" and r.born < end < r.died]

    weights = [p.numel for _, p, _ in build_model(tiny(family)).parameters() if len(p.shape) == 3]
    assert whole("attention") == []
    assert set(whole("all-linear")) == {2 * numel for numel in weights}


def test_checkpointing_keeps_one_layers_adapted_experts_at_a_time() -> None:
    """At the end of a checkpointed forward pass none of them is alive."""
    timeline = play(prepared(tiny("mixtral"), "lora"), checkpointing=True)
    assert not [r for r in timeline.records if r.op == "baddbmm" and r.born < timeline.forward_end_clock < r.died]


def test_qwen2_moe_makes_a_windowed_mask_that_no_layer_uses() -> None:
    """With sdpa and no window transformers still builds one byte for every two positions and sequence."""
    records = play(prepared(tiny("qwen2_moe")), 128, 2).records
    masks = [r.nbytes for r in records if r.op == "bitwise_and"]
    assert max(masks) == 2 * 128 * 128


def test_latent_attention_saves_whole_keys_and_the_value_projection() -> None:
    """DeepSeek's queries and keys are laid out for every head, and values stay part of their projection."""
    timeline = play(prepared(tiny("deepseek_v2", num_hidden_layers=1)), 128, 1)
    alive = {(r.op, r.nbytes) for r in timeline.records if r.born < timeline.forward_end_clock < r.died}
    heads, key, both = 4, 16 + 8, 16 + 16
    assert ("new_empty", 2 * 128 * heads * key) in alive
    assert ("mm", 2 * 128 * heads * both) in alive


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("family", TINY)
def test_played_blocks_stand_for_the_others(family: str, method: str, checkpointing: bool) -> None:
    """Levels are those of a model whose layers are all played."""
    config = tiny(family, num_hidden_layers=7)
    autocast = None if method == "full" else BF16
    shared, single = prepared(config, method), prepared(config, method)
    single.runs = [
        BlockRun(deepcopy(run.block), 1, run.first_index + i, run.path)
        for run in single.runs
        for i in range(run.count)
    ]
    one, every = (play(model, checkpointing=checkpointing, autocast=autocast) for model in (shared, single))
    assert len(one.plays) < len(every.plays)
    assert one.forward_end_requested == every.forward_end_requested
    assert one.end_bytes == every.end_bytes
    for phase in ("forward", "loss", "backward"):
        assert one.phases[phase].bytes == every.phases[phase].bytes
