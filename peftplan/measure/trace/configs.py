"""A Hugging Face config as a mapping: the part of the language model, its blocks, its positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftplan.arch.config import MAX_COUNT, MAX_WIDTH
from peftplan.errors import BadInput, shown

LAYER_KEYS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"),
    *("encoder_layers", "decoder_layers"),
)
# Names under which families state how many positions they take.
_LENGTH_KEYS = (
    *("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "max_seq_length"),
    *("n_ctx", "seq_length", "max_target_positions"),
)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the language model: of a model that also sees, its text tower's."""
    inner = config.get("text_config")
    if isinstance(inner, Mapping) and "model_type" in inner:
        return dict(inner)
    return dict(config)


def with_layers(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The config cut to its first so many blocks, lists with an entry for each block too."""
    cut = dict(config)
    whole = {config[key] for key in LAYER_KEYS if type(config.get(key)) is int}
    for key, value in config.items():
        if key in LAYER_KEYS and value is not None:
            cut[key] = layers
        elif isinstance(value, list) and (len(value) in whole or key.endswith("layer_types")):
            cut[key] = value[:layers]
    return cut


def num_layers(config: Mapping[str, Any], where: str) -> int | None:
    """How many blocks the config states; None where it leaves that to the library."""
    for key in LAYER_KEYS:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
            raise BadInput(f"{where}: {key} is {shown(value)}; it must be a whole number from 1 to {MAX_COUNT}")
        return value
    return None


def max_seq_len(config: Mapping[str, Any]) -> int | None:
    """How many positions the config says that the model takes, if it does."""
    stated = (config.get(key) for key in _LENGTH_KEYS)
    return next((n for n in stated if type(n) is int and 1 <= n <= MAX_WIDTH), None)
