"""Architectures: a model family's config.json turned into modules and a forward program.

`FAMILIES` names the module that builds each `model_type`; it is imported when first asked for. Nothing
of a model repository is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from peftplan.arch.buffers import settle_buffers
from peftplan.arch.config import Config
from peftplan.errors import BadInput, shown
from peftplan.specs.model import ModelSpec
from peftplan.versions import REFERENCE, Versions, behaviour, family_notes

# model_type -> the module of this package whose build(config) answers it
FAMILIES: dict[str, str] = {
    "bert": "bert_like",
    "roberta": "bert_like",
    "deberta-v2": "deberta",
    "t5": "t5",
    "llama": "llama_like",
    "mistral": "llama_like",
    "qwen2": "llama_like",
    "qwen3": "llama_like",
    "gemma": "llama_like",
    "gemma2": "llama_like",
    "gemma3_text": "llama_like",
    "phi3": "llama_like",
    "granite": "llama_like",
    "gpt2": "gpt2",
    "gpt_bigcode": "gpt_bigcode",
    "gpt_neox": "gpt_neox",
    "opt": "opt",
    "phi": "phi",
    "falcon": "falcon",
    "bloom": "bloom",
    "gptj": "gptj",
    "mixtral": "mixtral",
    "deepseek_v2": "deepseek",
    "gpt_oss": "gpt_oss",
    "deepseek_v3": "deepseek",
    "qwen2_moe": "qwen_moe",
    "qwen3_moe": "qwen_moe",
}


def build_model(config: Mapping[str, Any], where: str = "config", versions: Versions = REFERENCE) -> ModelSpec:
    """The model that a config describes, as these versions of the libraries build it.

    Raises BadInput for an unknown family or an unusable value.
    """
    reader = Config(config, where)
    notes: list[str] = []
    model_type = _family(reader)
    if model_type not in FAMILIES and isinstance(config.get("text_config"), Mapping):
        notes.append(f"{model_type}: a model with several towers; the figures are those of its text tower alone")
        reader = reader.section("text_config") or reader
        model_type = _family(reader)
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise BadInput(
            f"{where}: model_type is {shown(reader.get('model_type'))}; known families are {known}; "
            "`peftplan trace` takes all that the installed transformers has"
        )
    does = reader.behaviour = behaviour(versions, model_type)
    spec: ModelSpec = import_module(f"peftplan.arch.{FAMILIES[model_type]}").build(reader)
    spec.behaviour = does
    settle_buffers(spec)
    spec.notes[:0] = notes + family_notes(versions, model_type)
    return spec


def _family(reader: Config) -> str:
    model_type = reader.get("model_type")
    return model_type if isinstance(model_type, str) else ""
