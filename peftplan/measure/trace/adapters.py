"""peft's own adapters on a model, for every method that the installed peft has, by its own config class."""

from __future__ import annotations

from typing import Any

import torch

from peftplan.errors import BadInput, MachineLacks
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.model import FLOATS

_WORDS = ("attention", "mlp")


def adapt(model: Any, job: Job) -> Any:
    """Prepare the base for k-bit training if asked, and put the adapters on; both by peft's own code."""
    try:
        import peft
    except ImportError:
        raise MachineLacks(
            "adapters are put on by peft, which is not installed; pip install 'peftplan[trace]'"
        ) from None
    assert job.peft is not None
    if job.kbit_prepare:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = _config(peft, model, job)
    widen = job.adapter_dtype == "fp32"
    base = {id(parameter) for parameter in model.parameters()}
    try:
        with torch.device("meta"):
            model = peft.get_peft_model(model, config, autocast_adapter_dtype=widen)
    except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError, AttributeError) as error:
        raise BadInput(f"peft {peft.__version__} refuses this run: {error}") from error
    if not widen:
        for parameter in model.parameters():
            if parameter.requires_grad and id(parameter) not in base and parameter.is_floating_point():
                parameter.data = parameter.data.to(FLOATS[job.adapter_dtype])
    return model


def _config(peft: Any, model: Any, job: Job) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fields = dict(job.peft or {})
    kind = str(fields.pop("peft_type")).upper()
    known = {getattr(key, "value", key): value for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in known:
        names = ", ".join(sorted(str(name).lower() for name in known))
        raise BadInput(f"peft {peft.__version__} has no method {kind.lower()!r}; it has {names}")
    config_class = known[kind]
    fields.setdefault("task_type", _task(model))
    targets = fields.get("target_modules")
    if targets in _WORDS:
        fields["target_modules"] = _named(model, job, str(targets))
    unknown = [name for name in fields if name not in config_class.__dataclass_fields__]
    if unknown:
        raise BadInput(
            f"peft {peft.__version__}: {config_class.__name__} has no field {unknown[0]!r}; "
            f"it has {', '.join(sorted(config_class.__dataclass_fields__))}"
        )
    try:
        return config_class(**fields)
    except (ValueError, TypeError) as error:
        raise BadInput(f"peft {peft.__version__}: {config_class.__name__} refuses this: {error}") from error


def _task(model: Any) -> str:
    """peft's name of what the model is trained for."""
    if model.config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    causal = "CausalLM" in type(model).__name__ or "LMHead" in type(model).__name__
    return "CAUSAL_LM" if causal or hasattr(model, "prepare_inputs_for_generation") else "FEATURE_EXTRACTION"


def _named(model: Any, job: Job, word: str) -> list[str]:
    """The names behind `attention` and `mlp`: the family's, or those of the linears inside and beside attention."""
    known = job.attention_targets if word == "attention" else job.mlp_targets
    if known:
        return list(known)
    head = model.get_output_embeddings()
    found: dict[str, None] = {}
    for name, module in model.named_modules():
        if module is head or not hasattr(module, "weight") or not isinstance(module, torch.nn.Linear):
            continue
        parts = name.split(".")
        inside = any("attn" in part.lower() or "attention" in part.lower() for part in parts[:-1])
        if inside == (word == "attention") and any(part.isdigit() for part in parts):
            found[".".join(part for part in parts[-2:] if not part.isdigit())] = None
    if not found:
        raise BadInput(f"--targets {word}: no such linears are found in this model; give module names")
    return list(found)
