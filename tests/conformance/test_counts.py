"""Parameter counts against models that transformers builds, trainable counts against real peft."""

from __future__ import annotations

import random
from typing import Any

import pytest

from peftplan import Request, estimate
from peftplan.arch import FAMILIES, build_model
from peftplan.catalog import all_models
from peftplan.errors import BadInput

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")
BY_FAMILY = {
    family: [r for r in all_models() if r.config["model_type"] == family]
    for family in sorted({r.config["model_type"] for r in all_models()} & set(FAMILIES))
}


def cut(config: Any, layers: int = 2) -> dict[str, Any]:
    """A config with few layers and experts, so that building it is quick."""
    short = dict(config)
    for key in LAYER_KEYS:
        if key in short:
            short[key] = layers
    if isinstance(short.get("layer_types"), list):
        short["layer_types"] = short["layer_types"][:layers]
    if "first_k_dense_replace" in short:
        short["first_k_dense_replace"] = 1
    return short


def built(config: dict[str, Any]) -> Any:
    """The real model on the meta device."""
    rest = {k: v for k, v in config.items() if k not in ("model_type", "architectures", "torch_dtype")}
    real = transformers.AutoConfig.for_model(config["model_type"], **rest)
    with torch.device("meta"):
        model = getattr(transformers, config["architectures"][0])(real)
    model.tie_weights()
    return model


def count(model: Any, trainable: bool = False) -> int:
    """Parameters of a real model, shared ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def variants(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The config with odd widths, biases and tying, where the family has such keys."""
    odd = dict(config)
    if "num_key_value_heads" in odd and "kv_lora_rank" not in odd:
        odd["num_key_value_heads"] = rng.choice([1, odd["num_attention_heads"]])
    if odd.get("head_dim"):
        odd["head_dim"] = rng.choice([48, 80, 96])
    for key in ("intermediate_size", "moe_intermediate_size", "ffn_dim", "d_ff"):
        if odd.get(key):
            odd[key] = odd[key] + 24
    if "vocab_size" in odd:
        odd["vocab_size"] = odd["vocab_size"] + 13
    for key in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
        if key in odd and odd["model_type"] not in ("gpt_oss", "t5"):
            odd[key] = rng.random() < 0.5
    return odd


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", BY_FAMILY)
def test_random_variants_have_the_parameters_that_transformers_builds(family: str, seed: int) -> None:
    """Odd head sizes, biases, tying and widths: the count equals the meta-device model's to the unit."""
    rng = random.Random(f"{family}{seed}")
    config = variants(cut(dict(rng.choice(BY_FAMILY[family]).config)), rng)
    if "text_config" in config:
        pytest.skip("the text tower is counted under its own family")
    assert build_model(config).num_params() == count(built(config))


@pytest.mark.parametrize("rank", [1, 16])
@pytest.mark.parametrize("targets", ["all-linear", "attention", "mlp", "first", "regex"])
@pytest.mark.parametrize("family", BY_FAMILY)
def test_trainable_parameters_equal_real_peft(family: str, targets: str, rank: int) -> None:
    """LoRA over words, names and a regex trains exactly what peft trains."""
    record = min(BY_FAMILY[family], key=lambda r: r.num_params)
    config = cut(record.config)
    if "text_config" in config:
        pytest.skip("the text tower is counted under its own family")
    spec = build_model(config)
    ours: Any = targets
    theirs: Any = targets
    if targets in ("attention", "mlp"):
        theirs = list(spec.attention_targets if targets == "attention" else spec.mlp_targets)
    elif targets == "first":
        ours = theirs = [spec.attention_targets[0]]
    elif targets == "regex":
        ours = theirs = rf".*\.1\..*{spec.attention_targets[0]}"
    adapter = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=theirs)
    request = Request(model=config, method="lora", targets=ours, rank=rank, seq_len=8)
    try:
        answer = estimate(request).method
    except BadInput:  # refused here (gpt_oss keeps its feed-forward as expert tensors), refused there
        with torch.device("meta"), pytest.raises(ValueError, match=r"[Tt]arget"):
            peft.get_peft_model(built(config), adapter)
        return
    with torch.device("meta"):
        real = peft.get_peft_model(built(config), adapter)
    assert answer.num_trainable_params == count(real, trainable=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen2"])
def test_saved_modules_and_biases_equal_real_peft(family: str) -> None:
    """modules_to_save and bias=all train what peft trains."""
    config = cut(min(BY_FAMILY[family], key=lambda r: r.num_params).config)
    config["tie_word_embeddings"] = False
    name = build_model(config).attention_targets[0]
    for bias in ("none", "all", "lora_only"):
        for save in ([], ["lm_head"]):
            answer = estimate(
                Request(
                    model=config,
                    method="lora",
                    targets=[name],
                    bias=bias,
                    modules_to_save=save,
                    seq_len=8,
                )
            ).method
            adapter = peft.LoraConfig(r=16, target_modules=[name], bias=bias, modules_to_save=save or None)
            with torch.device("meta"):
                real = peft.get_peft_model(built(config), adapter)
            assert answer.num_trainable_params == count(real, trainable=True), (bias, save)
