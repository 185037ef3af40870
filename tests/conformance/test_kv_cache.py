"""What a cache of keys and values holds: the closed form against transformers' own cache, byte by byte.

Tiny models of each family generate on the CPU. Counted are the storages below the cache's tensors, each once: where
a layer with a window keeps a view, the whole tensor below it lives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peftplan.arch import FAMILIES, build_model
from peftplan.memory.kv_cache import CacheForm, cached_layers

ROWS = 3
_SHORT: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4}
_LLAMA = {
    **_SHORT,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
_GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {
    **_LLAMA,
    **_EXPERTS,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_WINDOW = {"sliding_window": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "llama multi-head": {**_LLAMA, "model_type": "llama", "num_key_value_heads": 4},
    "mistral": {**_LLAMA, **_WINDOW},
    "mistral without a window": {**_LLAMA, "model_type": "mistral", "sliding_window": None},
    "qwen2": {**_LLAMA, **_WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "qwen2 without windows": {**_LLAMA, **_WINDOW, "model_type": "qwen2", "use_sliding_window": False},
    "qwen3": {**_LLAMA, "head_dim": 16},
    "gemma": {**_LLAMA, "head_dim": 16, "num_key_value_heads": 1},
    "gemma2": {**_LLAMA, **_WINDOW, "head_dim": 16, "num_hidden_layers": 4},
    "gemma3_text": {**_LLAMA, **_WINDOW, "head_dim": 16, "num_hidden_layers": 7},
    "phi3": {**_LLAMA, "sliding_window": 9},
    "granite": _LLAMA,
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_bigcode multi-head": {**_GPT2, "model_type": "gpt_bigcode", "multi_query": False},
    "gpt_neox": {**_LLAMA, "num_key_value_heads": None},
    "opt": {**_LLAMA, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": _LLAMA,
    "falcon": {**_SHORT, "num_hidden_layers": 2},
    "falcon with groups": {
        **_SHORT,
        "model_type": "falcon",
        "num_hidden_layers": 2,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
    },
    "falcon multi-head": {
        **_SHORT,
        "model_type": "falcon",
        "num_hidden_layers": 2,
        "multi_query": False,
        "alibi": True,
        "parallel_attn": False,
        "bias": True,
    },
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gptj": {**_GPT2, "rotary_dim": 4},
    "mixtral": {**_LLAMA, "num_local_experts": 4, "sliding_window": 7},
    "qwen2_moe": {
        **_LLAMA,
        **_EXPERTS,
        "num_hidden_layers": 5,
        "num_experts": 4,
        "shared_expert_intermediate_size": 16,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 3,
    },
    "qwen3_moe": {**_LLAMA, **_EXPERTS, "head_dim": 16, "num_experts": 4},
    "gpt_oss": {
        **_LLAMA,
        **_WINDOW,
        "intermediate_size": 32,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "deepseek_v2": {**_LATENT, "q_lora_rank": None, "v_head_dim": 8},
    "deepseek_v3": {**_LATENT, "q_lora_rank": 24, "v_head_dim": 12, "n_group": 2, "topk_group": 1},
}


def config_of(name: str) -> dict[str, Any]:
    config = {"model_type": name, **CONFIGS[name]}
    return {key: value for key, value in config.items() if value is not None or key == "sliding_window"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def held(cache: Any) -> int:
    """Bytes of the storages below a cache."""
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cache_holds_as_many_bytes_as_transformers_does(name):
    """Behind a prompt shorter and longer than the window, and after each of six generated tokens."""
    config = config_of(name)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).float().eval()
    layers, form = cached_layers(build_model(config)), CacheForm(4)
    for prompt in (5, 12):
        with torch.no_grad():
            cache = model(torch.randint(1, 64, (ROWS, prompt)), use_cache=True).past_key_values
            assert held(cache) == ROWS * form.prompt_bytes(layers, prompt)
            for number in range(1, 7):
                ids = torch.randint(1, 64, (ROWS, 1))
                cache = model(ids, past_key_values=cache, use_cache=True).past_key_values
                assert held(cache) == ROWS * form.sequence_bytes(layers, prompt + number)


def test_every_family_that_generates_is_compared():
    """What has no cache in the closed form generates nothing token by token: encoders, and T5 of two halves."""
    compared = {config_of(name)["model_type"] for name in CONFIGS}
    assert set(FAMILIES) - compared == {"bert", "roberta", "deberta-v2", "t5"}
