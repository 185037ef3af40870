"""A run made tiny, so that it can be tried on the CPU: the same family, method and options, small numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftplan.catalog.lookup import find_config
from peftplan.measure.trace.configs import LAYER_KEYS, text_config, with_layers
from peftplan.request import Request

_LAYERS, _SEQ_LEN, _RANK, _MICRO_BATCH, _GRAD_ACCUM = 2, 64, 8, 2, 2
_HEAD, _HEADS, _WIDTH, _INNER, _WORDS, _EXPERTS = 16, 4, 64, 128, 256, 4
_HEAD_KEYS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
# Config keys by what they count, under the names that families give them, and what each is cut to.
_SMALL: tuple[tuple[int, tuple[str, ...]], ...] = (
    (_WIDTH, ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size")),
    (_INNER, ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size", "moe_intermediate_size")),
    (_INNER, ("shared_expert_intermediate_size", "decoder_ffn_dim", "encoder_ffn_dim")),
    (_HEADS, _HEAD_KEYS),
    (_HEAD, ("head_dim", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rotary_dim")),
    (_WORDS, ("vocab_size",)),
    (_EXPERTS, ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")),
)
_KEYS_AND_VALUES = ("num_key_value_heads", "num_kv_heads")
_TAKEN = ("num_experts_per_tok", "moe_topk", "num_experts_per_token")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "sep_token_id", "cls_token_id")


def shrunk_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model of the same kind with a few thousand parameters."""
    small = text_config(config)
    heads = next((small[key] for key in _HEAD_KEYS if isinstance(small.get(key), int)), _HEADS)
    for size, names in _SMALL:
        for name in names:
            value = small.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > size:
                small[name] = size
    for name in _KEYS_AND_VALUES:
        if isinstance(small.get(name), int):  # as many queries share a key as before, where they go up
            small[name] = max(1, _HEADS * small[name] // heads)
    for name in _TAKEN:
        if isinstance(small.get(name), int):
            small[name] = min(small[name], 2)
    for name in _TOKENS:
        if small.get(name) is not None:
            small[name] = 0
    return with_layers(small, _LAYERS) if any(key in small for key in LAYER_KEYS) else small


def shrunk(request: Request) -> Request:
    """The request with a tiny model and a small batch; what it asks for otherwise stays."""
    model = request.model
    config = find_config(model).config if isinstance(model, str) else model
    seq_len = request.seq_len
    return request.model_copy(
        update={
            "model": shrunk_config(config),
            "seq_len": min(seq_len or _SEQ_LEN, _SEQ_LEN),
            "micro_batch": min(request.micro_batch, _MICRO_BATCH),
            "grad_accum": min(request.grad_accum, _GRAD_ACCUM),
            "rank": min(request.rank, _RANK),
            "gpu": None,
        }
    )
