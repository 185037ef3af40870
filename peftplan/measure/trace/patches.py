"""What must look different for the libraries to do on fake tensors what they do on a GPU.

transformers takes a fake tensor for one that is being compiled and builds masks it would not build; torch
takes other paths for kinds of tensors that are not its own; torch.autocast turns itself off without a GPU.

Source: transformers-masks; torch 2.13 torch/amp/autocast_mode.py, torch/cuda/amp/common.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from peftplan.measure.trace.attention import Attention
from peftplan.measure.trace.gpu import pretended
from peftplan.measure.trace.in_place import one_hot
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.sparse import OF_SPARSE_TENSORS, without_sparse_tensors

_MASKS = ("transformers.masking_utils", "transformers.modeling_attn_mask_utils")


@contextmanager
def patched(job: Job, attention: Attention) -> Iterator[None]:
    """Everything in place while the block runs, and as it was afterwards."""
    with ExitStack() as stack:
        _replace(stack, _module("transformers.utils.import_utils"), "is_fake_tensor", lambda _: False)
        for module in map(_module, _MASKS):
            for name in ("is_tracing", "is_torchdynamo_compiling"):
                _replace(stack, module, name, lambda *_: False)
        _replace(stack, torch.nn.functional, "one_hot", one_hot)
        _replace(stack, torch.nn.Module, "_apply", _apply)
        _replace(stack, FakeTensor, "__format__", _format)
        amp = import_module("torch.cuda.amp.common")
        _replace(stack, amp, "amp_definitely_not_available", lambda: False)
        if str((job.peft or {}).get("peft_type", "")).upper() in OF_SPARSE_TENSORS:
            without_sparse_tensors(partial(_replace, stack))
        examples = getattr(_module("peft.tuners.cpt.model"), "CPTEmbedding", None)
        _replace(stack, examples, "get_projection", _projected)
        if job.device == "cuda":
            stack.enter_context(pretended(job.compute_capability))
        if job.device != "cpu":
            stack.enter_context(attention.installed())
        yield


def _module(name: str) -> Any:
    """A module by its name; None where this version has none, and so nothing to replace in it."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return None


def _replace(stack: ExitStack, module: Any, name: str, value: Any) -> None:
    """Set a name for as long as the stack lives; one that this version does not have is left out."""
    if not hasattr(module, name):
        return
    before = getattr(module, name)
    setattr(module, name, value)
    stack.callback(setattr, module, name, before)


def _projected(examples: Any) -> torch.Tensor:
    """CPT's weight within bounds: in its own storage, as that of a copy would count as none of the weights'."""
    with torch.no_grad():
        weight = examples.delta_embedding.weight
        copy = weight.clone().to(weight.device)
        norms = torch.norm(copy, p=2, dim=1)
        long = norms > 0
        del copy, norms, long
    return weight.data


def _format(tensor: torch.Tensor, form: str) -> str:
    """A number in an f-string, which names a module at times; of a fake one torch writes what it is."""
    return format(tensor.item(), form) if tensor.dim() == 0 else object.__format__(tensor, form)


def _apply(module: Any, change: Any, recurse: bool = True) -> Any:
    """What Module.to does: plain tensors get other data, while fake ones would be swapped, which they refuse."""
    for part in module.modules() if recurse else (module,):
        for parameter in part._parameters.values():
            if parameter is not None:
                with torch.no_grad():
                    parameter.data = change(parameter)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = change(buffer)
    return module
