"""The model of a config, built by transformers on the meta device; of the config only values are read.

No code of a model repository runs: classes come from the installed transformers alone.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

from peftplan.errors import BadInput
from peftplan.measure.trace.configs import text_config, with_layers

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What a config says of its storage and origin rather than of its shape.
_NOT_SHAPE = ("model_type", "architectures", "torch_dtype", "dtype", "auto_map", "quantization_config")
_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
_EXPERTS_TAKEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token")
# Some kinds have several heads; what a decoder of such a kind is for is said by its config.
_SCORES = ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",)
_HEADS = (
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
)


def build_model(
    config: dict[str, Any], dtype: str, attention: str, num_layers: int | None, num_labels: int | None = None
) -> Any:
    """A transformers model with its language-model head, on meta, in `dtype`.

    `num_labels`: with a head that classifies whole sequences instead. Raises BadInput where transformers does not
    know the architecture or rejects the config.
    """
    settings = text_config(config)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise BadInput(
            f"transformers {transformers.__version__} has no model_type {kind!r}; "
            "install a version that has it, or correct the config"
        )
    model_class = class_with_head(kind, settings) if num_labels is None else _classifier(kind)
    if num_layers is not None:
        settings = with_layers(settings, num_layers)
    values = {key: value for key, value in settings.items() if key not in _NOT_SHAPE}
    before = torch.get_default_dtype()
    torch.set_default_dtype(FLOATS[dtype])
    try:
        made = transformers.AutoConfig.for_model(kind, **values)
        made._attn_implementation = _implementation(model_class, attention)
        made.use_cache = False
        if num_labels is not None:
            made.num_labels = num_labels
            if getattr(made, "pad_token_id", None) is None:
                made.pad_token_id = 0  # a batch of several needs one
        if made.is_encoder_decoder and getattr(made, "decoder_start_token_id", None) is None:
            made.decoder_start_token_id = getattr(made, "pad_token_id", None) or 0  # labels are shifted behind it
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


def _implementation(model_class: Any, attention: str) -> str:
    """transformers' name of the implementation; eager where the family has no other."""
    if attention == "sdpa" and not getattr(model_class, "_supports_sdpa", True):
        return "eager"
    return {"flash": "flash_attention_2"}.get(attention, attention)


def class_with_head(kind: str, config: dict[str, Any]) -> Any:
    """The class of the model with its language-model head."""
    from transformers.models.auto import modeling_auto

    heads = _HEADS if config.get("is_decoder") is not True else _HEADS[::-1]
    names = _names(modeling_auto, heads, kind)
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


def _names(modeling_auto: Any, heads: tuple[str, ...], kind: str) -> list[str]:
    """The classes that tables of transformers have for a kind of model."""
    known = [getattr(modeling_auto, name, {}).get(kind) for name in heads]
    return [name for found in known if found for name in ((found,) if isinstance(found, str) else found)]


def _classifier(kind: str) -> Any:
    """The class of the model that classifies whole sequences."""
    from transformers.models.auto import modeling_auto

    for name in _names(modeling_auto, _SCORES, kind):
        return getattr(transformers, name)
    raise BadInput(
        f"transformers {transformers.__version__} has no sequence classifier for model_type {kind!r}; "
        "take another model, or leave --style classification out"
    )


def num_inactive_params(model: Any) -> int:
    """Weights of the experts that a token does not visit, as the config states experts and how many are taken."""
    config = model.config
    experts = next((n for key in _EXPERTS if (n := getattr(config, key, None))), 0)
    taken = next((n for key in _EXPERTS_TAKEN if (n := getattr(config, key, None))), 0)
    if not experts or not taken:
        return 0
    total = sum(p.numel() for name, p in model.named_parameters() if "experts" in name.split("."))
    return int(total * (experts - taken) // experts)


def _keep_wide(model: Any, dtype: torch.dtype) -> None:
    """Weights that a load leaves in fp32 whatever was asked for, as the model's class says."""
    plan = getattr(model, "_get_dtype_plan", None)
    names = plan(dtype) if plan is not None else {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        parts = name.split(".")
        if any(wide in parts for wide in names):
            tensor.data = tensor.data.to(torch.float32)
