"""The table of Llama-like families: each a row of differences from Llama, with its config class's defaults.

Source: transformers 5.23 configuration_llama.py and its like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """What sets a family apart from Llama."""

    defaults: Mapping[str, Any]
    qkv_bias: bool | None = None  # None: config key attention_bias
    out_bias: bool | None = None
    mlp_bias: bool = False  # whether config key mlp_bias counts
    head_norms: str = ""
    gemma: bool = False  # norms around 1 in fp32, scaled embeddings
    scaled_embedding: bool = False  # older releases scale embeddings in the model, by a number of each pass
    sandwich: bool = False  # four norms a block
    fused: bool = False  # one matrix for q, k, v and one for both branches of the MLP
    activation_key: str = "hidden_act"
    # which layers have a window: "none", "all", the "last" ones, or all but every n-th
    windows: str | int = "none"
    tables_by_kind: bool = False  # rotary tables of their own for layers with a window
    score_cap: bool = False  # scores through a tanh: transformers offers no sdpa then
    multipliers: bool = False  # of embeddings, residuals and logits
    notes: tuple[str, ...] = ()


def _sizes(
    vocab: int, hidden: int, inner: int, layers: int, heads: int, positions: int, **more: Any
) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
        **more,
    }


_QWEN: dict[str, Any] = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA: dict[str, Any] = {"head_dim": 256, "tie_word_embeddings": True}
GELU = "gelu_pytorch_tanh"

ROWS = {
    "llama": Row(_sizes(32000, 4096, 11008, 32, 32, 2048), mlp_bias=True),
    "mistral": Row(
        _sizes(32000, 4096, 14336, 32, 32, 131072, num_key_value_heads=8, sliding_window=4096),
        qkv_bias=False,
        out_bias=False,
        windows="all",
    ),
    "qwen2": Row(
        _sizes(151936, 4096, 22016, 32, 32, 32768, **_QWEN), qkv_bias=True, out_bias=False, windows="last"
    ),
    "qwen3": Row(
        _sizes(151936, 4096, 22016, 32, 32, 32768, head_dim=128, **_QWEN),
        head_norms="projected",
        windows="last",
    ),
    "gemma": Row(
        _sizes(256000, 3072, 24576, 28, 16, 8192, num_key_value_heads=16, hidden_act=GELU, **_GEMMA),
        gemma=True,
        scaled_embedding=True,
    ),
    "gemma2": Row(
        _sizes(
            256000,
            2304,
            9216,
            26,
            8,
            8192,
            num_key_value_heads=4,
            hidden_activation=GELU,
            sliding_window=4096,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            **_GEMMA,
        ),
        gemma=True,
        scaled_embedding=True,
        sandwich=True,
        activation_key="hidden_activation",
        windows=2,
        score_cap=True,
        notes=("transformers 5.23 has no sdpa for Gemma 2, whose scores are capped: sdpa means eager here",),
    ),
    "gemma3_text": Row(
        _sizes(
            262208,
            2304,
            9216,
            26,
            8,
            131072,
            num_key_value_heads=4,
            hidden_activation=GELU,
            sliding_window=4096,
            **_GEMMA,
        ),
        head_norms="together",
        gemma=True,
        sandwich=True,
        activation_key="hidden_activation",
        windows=6,
        tables_by_kind=True,
    ),
    "phi3": Row(
        _sizes(32064, 3072, 8192, 32, 32, 4096, sliding_window=None),
        qkv_bias=False,
        out_bias=False,
        fused=True,
        windows="all",
    ),
    "granite": Row(_sizes(32000, 4096, 11008, 32, 32, 2048), mlp_bias=True, multipliers=True),
}
