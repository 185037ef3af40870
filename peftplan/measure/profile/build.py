"""The model of a job on a real device: built on meta by the trace's own code, then filled tensor by tensor.

Weights are random, since neither memory nor speed depends on them; or they are read from a folder. What is
packed is made dense one linear at a time and packed by bitsandbytes at once, so that a model is never whole
in 16 bits on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from peftplan.errors import BadInput
from peftplan.measure.trace.adapters import adapt
from peftplan.measure.trace.configs import text_config
from peftplan.measure.trace.job import Job, Quantization
from peftplan.measure.trace.model import FLOATS, build_model, class_with_head, num_inactive_params
from peftplan.measure.trace.quantized import quantize

Progress = Callable[[float, str], None]
_SPREAD = 0.02  # of random weights, as most families initialise theirs


@dataclass(slots=True)
class Built:
    """A model that can be trained. `inner` is the transformers model without what peft wraps around it."""

    model: Any
    inner: Any
    adapters: set[str]  # names of the parameters that the method added
    num_params: int
    num_inactive_params: int
    notes: list[str]


def build(job: Job, weights: str | None, progress: Progress) -> Built:
    """The model on the job's device, as `peftplan trace` builds it."""
    notes: list[str] = []
    if weights is None:
        inner = build_model(job.config, job.base_dtype, job.attention, job.num_layers)
        if job.quantization is not None:
            notes += quantize(inner, job.quantization, job.base_dtype)
    else:
        inner = _load(job, weights)
    base = {id(parameter) for parameter in inner.parameters()}
    num_params, num_inactive = num_weights(inner), num_inactive_params(inner)
    model = inner
    if job.peft is not None:
        model, said = adapt(inner, job)
        notes += said
    if job.checkpointing:
        inner.gradient_checkpointing_enable({"use_reentrant": job.use_reentrant})
    adapters = {name for name, parameter in model.named_parameters() if id(parameter) not in base}
    fill(model, inner, job, progress)
    model.train()
    return Built(model, inner, adapters, num_params, num_inactive, notes)


def num_weights(model: Any) -> int:
    """Parameters, packed ones by the number that they stand for."""
    total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        total += torch.Size(state.shape).numel() if state is not None else parameter.numel()
    return total


# ---- random weights


def fill(model: Any, inner: Any, job: Job, progress: Progress) -> None:
    """Put a tensor on the device in place of each one on meta; ties are kept."""
    made: dict[int, tuple[Any, Any]] = {}  # the original is kept, so that ids stay its own
    modules = list(model.modules())
    for number, module in enumerate(modules):
        for name, parameter in list(module._parameters.items()):
            if parameter is None or parameter.device.type != "meta":
                continue
            if id(parameter) not in made:
                made[id(parameter)] = (_parameter(name, parameter, module, job), parameter)
            module._parameters[name] = made[id(parameter)][0]
        if _fill_buffers(module, job.device, made):
            _compute_buffers(inner, module)
        if number % 64 == 0:
            progress(number / len(modules), "building the model")


def _parameter(name: str, parameter: Any, module: Any, job: Job) -> torch.nn.Parameter:
    if getattr(parameter, "quant_state", None) is not None:
        return _packed_4bit(parameter, module, job.device)
    if getattr(parameter, "SCB", None) is not None:
        return _packed_8bit(parameter, job)
    made = torch.empty(parameter.shape, dtype=parameter.dtype, device=job.device)
    if not parameter.is_floating_point():
        made.zero_()
    elif parameter.dim() > 1:
        made.normal_(0.0, _SPREAD)
    else:  # a norm's weight, or a bias
        made.fill_(0.0 if "bias" in name else 1.0)
    return torch.nn.Parameter(made, requires_grad=parameter.requires_grad)


def _packed_4bit(parameter: Any, module: Any, device: str) -> torch.nn.Parameter:
    import bitsandbytes

    state = parameter.quant_state
    dense = torch.empty(state.shape, dtype=state.dtype, device=device).normal_(0.0, _SPREAD)
    maps = bitsandbytes.functional.name2qmap
    for name in [name for name, values in maps.items() if values.device.type == "meta"]:
        del maps[name]  # made while the model was built
    packed: torch.nn.Parameter = bitsandbytes.nn.Params4bit(
        dense,
        requires_grad=False,
        blocksize=parameter.blocksize,
        compress_statistics=parameter.compress_statistics,
        quant_type=parameter.quant_type,
        quant_storage=parameter.quant_storage,
        module=module,
    )._quantize(device)
    return packed


def _packed_8bit(parameter: Any, job: Job) -> torch.nn.Parameter:
    import bitsandbytes

    dense = torch.empty(parameter.shape, dtype=FLOATS[job.base_dtype], device=job.device).normal_(0.0, _SPREAD)
    packed: torch.nn.Parameter = bitsandbytes.nn.Int8Params(
        dense, requires_grad=False, has_fp16_weights=parameter.has_fp16_weights
    )._quantize(job.device)
    return packed


def _fill_buffers(module: Any, device: str, made: dict[int, tuple[Any, Any]]) -> bool:
    """Whether the module had buffers on meta."""
    found = False
    for name, buffer in list(module._buffers.items()):
        if buffer is None or buffer.device.type != "meta":
            continue
        if id(buffer) not in made:
            new = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
            made[id(buffer)] = (new.fill_(1) if buffer.is_floating_point() else new.zero_(), buffer)
        module._buffers[name] = made[id(buffer)][0]
        found = True
    return found


def _compute_buffers(inner: Any, module: Any) -> None:
    """Let the family compute its buffers - frequencies, masks - where it can; weights stay as they are."""
    for parameter in module.parameters(recurse=False):
        parameter._is_hf_initialized = True
    try:
        with torch.no_grad():
            inner._init_weights(module)
    except Exception:  # noqa: BLE001 - a module that is not the family's own, or whose tensors are packed
        return


# ---- weights from a folder


def _load(job: Job, folder: str) -> Any:
    """A model read from safetensors by transformers; no code of a model repository runs."""
    kind = text_config(job.config).get("model_type")
    found = class_with_head(str(kind), text_config(job.config))
    settings: dict[str, Any] = {
        "dtype": FLOATS[job.base_dtype],
        "device_map": {"": job.device},
        "attn_implementation": {"flash": "flash_attention_2"}.get(job.attention, job.attention),
        "trust_remote_code": False,
        "use_safetensors": True,
        "local_files_only": True,
    }
    if job.quantization is not None:
        settings["quantization_config"] = _quantization(job.quantization, job.base_dtype)
    try:
        model = found.from_pretrained(folder, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise BadInput(f"transformers {transformers.__version__} cannot load {folder}: {error}") from error
    model.config.use_cache = False
    return model


def _quantization(how: Quantization, base_dtype: str) -> Any:
    if how.kind == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=how.kind,
        bnb_4bit_use_double_quant=how.double_quant,
        bnb_4bit_compute_dtype=FLOATS[base_dtype] if base_dtype != "fp32" else torch.bfloat16,
    )
