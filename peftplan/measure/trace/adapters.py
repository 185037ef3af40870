"""peft's own adapters on a model, for every method that the installed peft has, by its own config class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from peftplan.errors import BadInput, MachineLacks, PeftplanError
from peftplan.measure.trace import clusters
from peftplan.measure.trace.building import building
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.model import FLOATS
from peftplan.measure.trace.peft_defaults import fill
from peftplan.measure.trace.sparse import place_indices, without_mask

_WORDS = ("attention", "mlp")
_LONGEST = 200  # characters of what a library says
# Their prompts are keys and values of a cache, which checkpointed blocks are not given.
_THROUGH_THE_CACHE = ("PREFIX_TUNING", "CARTRIDGE")
_NOT_TRACED = {
    "XLORA": "mixes LoRA adapters that are trained already, and a trace has no values to load",
}
# What these make of a packed weight has other shapes and values than they take it for; peft does not say so.
_NOT_PACKED = {
    "DELORA": "takes the norms of the weight's columns",
    "UNILORA": "casts its scales to the type of the weight",
}
# What torch says where code asks for the values of a tensor that has none.
_NO_VALUES = ("meta tensor", "Meta tensors", "no data")


def adapt(model: Any, job: Job) -> tuple[Any, list[str]]:
    """The model prepared for k-bit training if asked, with its adapters, by peft's own code; and notes."""
    try:
        import peft
    except ImportError:
        raise MachineLacks(
            "adapters are put on by peft, which is not installed; pip install 'peftplan[trace]'"
        ) from None
    assert job.peft is not None
    if job.kbit_prepare:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config, notes = _config(peft, model, job)
    kind = config.peft_type.value
    if kind in _THROUGH_THE_CACHE and job.checkpointing:
        raise BadInput(
            f"peft's {kind.lower()} does not work with gradient checkpointing, which drops the cache that its "
            "prompts stand in; add --no-checkpointing"
        )
    widen = job.adapter_dtype == "fp32"
    base = {id(parameter) for parameter in model.parameters()}
    if kind == "SHIRA":
        without_mask(config)
    try:
        with building():
            model = peft.get_peft_model(model, config, autocast_adapter_dtype=widen)
    except Exception as error:  # whatever peft says of a run is its verdict
        raise BadInput(f"peft {peft.__version__} refuses this run: {_in_a_line(error, kind)}") from error
    if kind == "SHIRA":
        place_indices(model)
    if not widen:
        # modules that are saved whole keep the type of what they are copies of
        copies = (p for name, p in model.named_parameters() if ".modules_to_save." in name)
        left = base | {id(parameter) for parameter in copies}
        for parameter in model.parameters():
            if parameter.requires_grad and id(parameter) not in left and parameter.is_floating_point():
                parameter.data = parameter.data.to(FLOATS[job.adapter_dtype])
    for name, parameter in model.named_parameters():
        if any(part in name for part in job.freezes):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise BadInput(f"peft's {kind.lower()} finds nothing to train in this model; give other targets or options")
    if job.trl_casts:
        _cast_as_trl(model)
    return model, notes


def _cast_as_trl(model: Any) -> None:
    """What TRL's trainers cast in a 4-bit model under bf16. Source: trl-casts."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm) or "norm" in name:
            module.to(torch.float32)
        elif any(word in name for word in ("lm_head", "embed_tokens", "wte", "wpe")):
            weight = getattr(module, "weight", None)
            if weight is not None and weight.dtype is torch.float32:
                module.to(torch.bfloat16)


@contextmanager
def explained(job: Job) -> Iterator[None]:
    """Of the methods that peft lets be put on a model, some cannot run on it: what they fail of, in a line."""
    try:
        yield
    except PeftplanError:
        raise
    except Exception as error:
        kind = str((job.peft or {}).get("peft_type", "LORA")).upper()
        if kind == "LORA":
            raise
        base = f" on a {job.quantization.kind} base" if job.quantization is not None else ""
        blocks = " with gradient checkpointing" if job.checkpointing else ""
        raise BadInput(
            f"peft's {kind.lower()} does not run{base}{blocks}: {type(error).__name__}: {_in_a_line(error, kind)}"
        ) from error


def _config(peft: Any, model: Any, job: Job) -> tuple[Any, list[str]]:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fields = dict(job.peft or {})
    kind = str(fields.pop("peft_type")).upper()
    known = {getattr(key, "value", key): value for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in known:
        names = ", ".join(sorted(str(name).lower() for name in known))
        raise BadInput(f"peft {peft.__version__} has no method {kind.lower()!r}; it has {names}")
    config_class = known[kind]
    if kind in _NOT_TRACED:
        raise BadInput(f"peft's {kind.lower()} {_NOT_TRACED[kind]}; take another method")
    if kind in _NOT_PACKED and job.quantization is not None:
        raise BadInput(f"peft's {kind.lower()} {_NOT_PACKED[kind]}, which is packed; leave --quant out")
    num_layers = getattr(model.config, "num_hidden_layers", None) or 1
    fields, notes = fill(kind, config_class, fields, job.peft_hints, num_layers)
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
    if kind == "ADAMSS":
        notes.append(clusters.NOTE)
    try:
        with clusters.without_scikit_learn():
            return config_class(**fields), notes
    except (ValueError, TypeError, ImportError) as error:
        raise BadInput(
            f"peft {peft.__version__}: {config_class.__name__} refuses this: {_in_a_line(error, kind)}"
        ) from error


def _in_a_line(error: Exception, kind: str) -> str:
    text = str(error)
    if any(words in text for words in _NO_VALUES):
        return f"{kind.lower()} computes on the weights as it is put on, and a trace has shapes only"
    return text.strip().split("\n")[0].split(". ")[0][:_LONGEST] or type(error).__name__


def _task(model: Any) -> str:
    """peft's name of what the model is trained for."""
    if "ForSequenceClassification" in type(model).__name__:
        return "SEQ_CLS"
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
