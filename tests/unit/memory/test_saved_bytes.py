"""What one Llama block keeps for backward, by the formulas that a trace of the real libraries confirmed.

h hidden size, q query width, kv key/value width, H query heads, I intermediate size, r rank: bytes a token.
"""

from __future__ import annotations

from typing import Any

import pytest

from peftplan import Request, estimate

TOKENS = 2048
WIDTHS = {"h": 512, "i": 1408, "heads": 8, "kv_heads": 2, "r": 16}


def config(layers: int, kv_heads: int) -> dict[str, Any]:
    """A small Llama."""
    return {
        "model_type": "llama",
        "hidden_size": WIDTHS["h"],
        "intermediate_size": WIDTHS["i"],
        "num_hidden_layers": layers,
        "num_attention_heads": WIDTHS["heads"],
        "num_key_value_heads": kv_heads,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
    }


def per_layer(kv_heads: int = 2, **options: Any) -> int:
    """Bytes that one more layer leaves alive at the end of forward."""

    def activations(layers: int) -> int:
        request = Request(model=config(layers, kv_heads), seq_len=TOKENS, rank=WIDTHS["r"], **options)
        return estimate(request).memory.activations_bytes

    difference = activations(6) - activations(5)
    assert difference == activations(5) - activations(4)
    return difference


def letters(kv_heads: int = 2) -> tuple[int, int, int, int, int, int]:
    """h, q, kv, H, I, r."""
    h, heads = WIDTHS["h"], WIDTHS["heads"]
    return h, h, h // heads * kv_heads, heads, WIDTHS["i"], WIDTHS["r"]


RNG_BYTES = 16 + 8  # flash attention's random state, kept once a layer


def test_full_bf16() -> None:
    """16h + 4q + 4kv + 4H + 8I + 8 bytes a token."""
    h, q, kv, heads, i, _ = letters()
    expected = TOKENS * (16 * h + 4 * q + 4 * kv + 4 * heads + 8 * i + 8) + RNG_BYTES
    assert per_layer(method="full", checkpointing=False) == expected


def test_lora_with_bf16_adapters() -> None:
    """12h + 4q + 4kv + 4H + 8I + 14r + 8: the normalised input is not kept, each A's output is."""
    h, q, kv, heads, i, r = letters()
    expected = TOKENS * (12 * h + 4 * q + 4 * kv + 4 * heads + 8 * i + 14 * r + 8) + RNG_BYTES
    found = per_layer(method="lora", precision="bf16", adapter_dtype="bf16", checkpointing=False)
    assert found == expected


def test_lora_with_fp32_adapters_without_autocast() -> None:
    """28h + 8q + 4kv + 4H + 10I + 28r + 8: every target keeps an fp32 copy of its input."""
    h, q, kv, heads, i, r = letters()
    expected = TOKENS * (28 * h + 8 * q + 4 * kv + 4 * heads + 10 * i + 28 * r + 8) + RNG_BYTES
    assert per_layer(method="lora", precision="bf16", checkpointing=False) == expected


def test_lora_under_autocast_keeps_bf16_copies_of_the_adapters() -> None:
    """18h + 6q + 4kv + 4H + 8I + 14r + 8, and 2r(in + out) of every target whatever the tokens."""
    h, q, kv, heads, i, r = letters()
    adapters = 2 * r * ((h + q) + 2 * (h + kv) + (q + h) + 2 * (h + i) + (i + h))
    expected = TOKENS * (18 * h + 6 * q + 4 * kv + 4 * heads + 8 * i + 14 * r + 8) + adapters
    assert per_layer(method="lora", checkpointing=False) == expected + RNG_BYTES


def test_prepared_qlora_without_autocast_and_with_equal_heads() -> None:
    """16h + 8q + 8kv + 4H + 16I + 28r + 8: everything flows in fp32."""
    h, q, kv, heads, i, r = letters(kv_heads=8)
    expected = TOKENS * (16 * h + 8 * q + 8 * kv + 4 * heads + 16 * i + 28 * r + 8)
    found = per_layer(kv_heads=8, method="qlora", precision="bf16", checkpointing=False)
    assert found == expected


def test_prepared_qlora_under_autocast() -> None:
    """18h + 4q + 4kv + 4H + 14I + 14r + 8 and the copies of the adapters."""
    h, q, kv, heads, i, r = letters()
    adapters = 2 * r * ((h + q) + 2 * (h + kv) + (q + h) + 2 * (h + i) + (i + h))
    expected = TOKENS * (18 * h + 4 * q + 4 * kv + 4 * heads + 14 * i + 14 * r + 8) + adapters
    assert per_layer(method="qlora", checkpointing=False) == expected + RNG_BYTES


@pytest.mark.parametrize(("method", "width"), [("full", 2), ("lora", 2), ("qlora", 4)])
def test_a_checkpointed_layer_keeps_its_input(method: str, width: int) -> None:
    """2h bytes a token, 4h where the residual stream is fp32 (prepared QLoRA)."""
    assert per_layer(method=method, checkpointing=True) == TOKENS * width * WIDTHS["h"]


def test_dropout_keeps_a_mask_and_the_dropped_input_for_every_target() -> None:
    """bf16 adapters with dropout: a byte and two for every input feature of every target."""
    h, q, _, _, i, _ = letters()
    options: dict[str, Any] = {
        "method": "lora",
        "precision": "bf16",
        "adapter_dtype": "bf16",
        "checkpointing": False,
    }
    inputs = 3 * h + q + 2 * h + i
    # the plain inputs that several targets share go, their dropped-out copies and masks come
    shared = 2 * (h + h) + 2 * i
    gained = TOKENS * (3 * inputs - shared)
    assert per_layer(**options, dropout=0.1) - per_layer(**options) == gained
