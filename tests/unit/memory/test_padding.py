"""A padded batch: the masks that attention then takes, and what they leave for backward."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan import Report, Request, estimate
from peftplan.catalog import find_model

LENGTH, H, INNER, HEADS, KV_HEADS = 512, 512, 1408, 8, 2
KV = H // HEADS * KV_HEADS
CONFIG = {
    "model_type": "llama",
    "hidden_size": H,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
}


def ask(model: Any, **options: Any) -> Report:
    """One answer, without checkpointing unless it is asked for."""
    return estimate(Request(model=model, **{"seq_len": LENGTH, "checkpointing": False, **options}))


def per_layer(**options: Any) -> int:
    """Bytes that one more layer leaves alive at the end of forward, full fine-tuning in bf16."""

    def activations(layers: int) -> int:
        report = ask({**CONFIG, "num_hidden_layers": layers}, method="full", **options)
        return report.memory.activations_bytes

    assert activations(4) - activations(3) == activations(3) - activations(2)
    return activations(3) - activations(2)


# norms and residuals, MLP, one row sum of each norm, the output projection's input: bytes a token
REST = 16 * H + 8 * INNER + 8


@pytest.mark.parametrize("batch", [1, 2])
def test_a_padded_batch_holds_a_mask_and_repeated_heads_in_every_layer(batch: int) -> None:
    """sdpa: queries, keys and values of all heads, result and rows, and the mask in 16 bits."""
    tokens = batch * LENGTH
    expected = tokens * (REST + 8 * H + 4 * HEADS) + 2 * batch * LENGTH**2
    assert per_layer(padding=True, micro_batch=batch) == expected


def test_the_package_holds_copies_of_the_real_tokens() -> None:
    """flash: real tokens of queries, keys, values and result, their rows and places; the result put back."""
    tokens = 2 * LENGTH
    real = (tokens - 1) * (4 * H + 4 * KV + 4 * HEADS + 8)
    starts, random_state = 4 * 3, 16
    expected = tokens * (REST + 2 * H) + real + starts + random_state
    assert per_layer(padding=True, micro_batch=2, attention="flash") == expected


@pytest.mark.parametrize("model", ["llama-3.2-1b", "gpt2", "bloom-560m", "deberta-v3-base"])
def test_attention_written_out_takes_a_mask_either_way(model: str) -> None:
    """A causal model's eager attention, and DeBERTa's, need nothing more for a padded batch."""
    plain, padded = (ask(model, attention="eager", padding=padding).memory for padding in (False, True))
    assert padded.moments == plain.moments
    assert padded.evaluation_peak_bytes == plain.evaluation_peak_bytes


def test_a_window_that_is_not_reached_needs_a_mask_too() -> None:
    """Mistral below its window takes the flash kernel, with padding a mask as beyond it."""
    config = {**find_model("mistral-7b").config, "num_hidden_layers": 2}
    plain, padded = (ask(config, padding=padding).memory.activations_bytes for padding in (False, True))
    assert padded - plain > 2 * 2 * LENGTH**2
    beyond = {**config, "sliding_window": LENGTH}
    assert padded == ask(beyond).memory.activations_bytes == ask(beyond, padding=True).memory.activations_bytes


def test_an_encoder_builds_a_mask_of_a_padded_batch_only() -> None:
    """BERT hides nothing without padding: then no mask, and flash attention's random state in each layer."""
    plain, padded = (ask("bert-base-uncased", padding=p).memory.activations_bytes for p in (False, True))
    assert padded - plain == 12 * (2 * LENGTH**2 - 24)


def test_a_padded_batch_is_masked_in_evaluation_too() -> None:
    """Without a graph one layer's mask is there at a time, beside the one of booleans."""
    config = {**find_model("bert-base-uncased").config, "vocab_size": 100}
    plain, padded = (ask(config, padding=p, micro_batch=4).memory.evaluation_peak_bytes for p in (False, True))
    assert padded - plain >= 4 * LENGTH**2


def test_t5_hides_padding_in_the_biases_of_every_sequence() -> None:
    """The bias [1, heads, length, length] that sequences share becomes one for each, in every layer."""
    config = {**find_model("t5-small").config, "vocab_size": 1000}
    plain, padded = (
        ask(config, padding=padding, micro_batch=2, method="full").memory.activations_bytes
        for padding in (False, True)
    )
    # the encoder's six layers and the decoder's attention to it hold the masked bias of both sequences
    assert padded - plain > 12 * 2 * 8 * LENGTH**2 * 2 / 2


def test_the_answer_says_what_is_assumed_of_a_padded_batch() -> None:
    """A note names the mask, or how many tokens are taken to be real."""
    for attention, words in (("sdpa", "takes no mask"), ("flash", "all but one token"), ("eager", "padded or not")):
        report = ask("gpt2", attention=attention, padding=True)
        assert any(note.startswith("padding: ") and words in note for note in report.notes)
    assert not any(note.startswith("padding") for note in ask("gpt2").notes)
