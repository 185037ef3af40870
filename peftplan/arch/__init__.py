"""Architectures: a model family's config.json turned into modules and a forward program.

`FAMILIES` names the module that builds each `model_type`; it is imported when first asked for. Nothing
of a model repository is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from peftplan.arch.config import Config
from peftplan.errors import BadInput
from peftplan.specs.model import ModelSpec

# model_type -> the module of this package whose build(config) answers it
FAMILIES: dict[str, str] = {
    "llama": "llama_like",
    "mistral": "llama_like",
    "qwen2": "llama_like",
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
    "mixtral": "mixtral",
    "qwen2_moe": "qwen_moe",
    "qwen3_moe": "qwen_moe",
}


def build_model(config: Mapping[str, Any], where: str = "config") -> ModelSpec:
    """The model that a config describes. Raises BadInput for an unknown family or an unusable value."""
    reader = Config(config, where)
    notes: list[str] = []
    model_type = config.get("model_type")
    if isinstance(config.get("text_config"), Mapping) and model_type not in FAMILIES:
        text = reader.section("text_config")
        assert text is not None
        notes.append(
            f"{model_type}: a model with several towers; the figures are those of its text tower alone"
        )
        reader, model_type = text, text.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise BadInput(f"{where}: model_type is {model_type!r}; known families are {known}")
    spec: ModelSpec = import_module(f"peftplan.arch.{FAMILIES[model_type]}").build(reader)
    spec.notes[:0] = notes
    return spec
