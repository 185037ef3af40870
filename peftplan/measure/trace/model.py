"""The model of a config, built by transformers on the meta device; of the config only values are read.

No code of a model repository runs: classes come from the installed transformers alone.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from peftplan.errors import BadInput

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What a config says of its storage and origin rather than of its shape.
_NOT_SHAPE = ("model_type", "architectures", "torch_dtype", "dtype", "auto_map", "quantization_config")
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
_HEADS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
)


def build_model(config: dict[str, Any], dtype: str, attention: str, num_layers: int | None) -> Any:
    """A transformers model with its language-model head, on meta, in `dtype`.

    Raises BadInput where transformers does not know the architecture or rejects the config.
    """
    settings = text_config(config)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise BadInput(
            f"transformers {transformers.__version__} has no model_type {kind!r}; "
            "install a version that has it, or correct the config"
        )
    model_class = _model_class(kind, settings)
    if num_layers is not None:
        settings = with_layers(settings, num_layers)
    values = {key: value for key, value in settings.items() if key not in _NOT_SHAPE}
    before = torch.get_default_dtype()
    torch.set_default_dtype(FLOATS[dtype])
    try:
        made = transformers.AutoConfig.for_model(kind, **values)
        made._attn_implementation = _implementation(model_class, attention)
        made.use_cache = False
        with torch.device("meta"):
            model = model_class(made)
        model.tie_weights()
    except Exception as error:  # whatever the library says of a config is its verdict
        raise BadInput(
            f"transformers {transformers.__version__} rejects this {kind} config: {type(error).__name__}: {error}"
        ) from error
    finally:
        torch.set_default_dtype(before)
    _keep_wide(model, FLOATS[dtype])
    model.config.dtype = FLOATS[dtype]
    model.train()
    return model


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the language model: of a model that also sees, its text tower's."""
    inner = config.get("text_config")
    if isinstance(inner, dict) and "model_type" in inner:
        return dict(inner)
    return dict(config)


def with_layers(config: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """The config cut to so many layers."""
    cut = dict(config)
    for key in _LAYER_KEYS:
        if key in cut:
            cut[key] = num_layers
    for key, value in cut.items():
        if key.endswith("layer_types") and isinstance(value, list):
            cut[key] = value[:num_layers]
    return cut


def _implementation(model_class: Any, attention: str) -> str:
    """transformers' name of the implementation; eager where the family has no other."""
    if attention == "sdpa" and not getattr(model_class, "_supports_sdpa", True):
        return "eager"
    return {"flash": "flash_attention_2"}.get(attention, attention)


def _model_class(kind: str, config: dict[str, Any]) -> Any:
    """The class of the model with its language-model head."""
    from transformers.models.auto import modeling_auto

    known = [getattr(modeling_auto, name, {}).get(kind) for name in _HEADS]
    names = [name for found in known if found for name in ((found,) if isinstance(found, str) else found)]
    named = config.get("architectures") or []
    wanted = [name for name in named if isinstance(name, str) and name in names]
    for name in (*wanted, *names):
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    raise BadInput(
        f"transformers {transformers.__version__} has no language model for model_type {kind!r}; "
        "give the config of a causal, sequence-to-sequence or masked language model"
    )


def _keep_wide(model: Any, dtype: torch.dtype) -> None:
    """Weights that a load leaves in fp32 whatever was asked for, as the model's class says."""
    plan = getattr(model, "_get_dtype_plan", None)
    names = plan(dtype) if plan is not None else {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if any(wide in parts for wide in names):
            parameter.data = parameter.data.to(torch.float32)
