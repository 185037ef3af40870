"""What must look different for the libraries to do on fake tensors what they do on a GPU.

transformers takes a fake tensor for one that is being compiled and builds masks it would not build; reads
of values (is anything padded? is the batch packed?) cannot be answered by a fake and are answered from the
job; torch.autocast turns itself off without a GPU.

Source: transformers-masks; torch 2.13 torch/amp/autocast_mode.py, torch/cuda/amp/common.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import torch

from peftplan.measure.trace.attention import Attention
from peftplan.measure.trace.job import Job


@contextmanager
def patched(job: Job, attention: Attention) -> Iterator[None]:
    """Everything in place while the block runs, and as it was afterwards."""
    unpadded = not job.padding
    with ExitStack() as stack:
        masks = import_module("transformers.masking_utils")
        for name, value in {
            "is_tracing": lambda *_: False,
            "is_torchdynamo_compiling": lambda *_: False,
            "find_packed_sequence_indices": lambda *_: None,
            "fast_all": lambda *_: unpadded,
        }.items():
            _replace(stack, masks, name, value)
        _replace(stack, masks, "_ignore_bidirectional_mask_sdpa", _answers_by(unpadded))
        amp = import_module("torch.cuda.amp.common")
        _replace(stack, amp, "amp_definitely_not_available", lambda: False)
        _replace(stack, torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        if job.device != "cpu":
            stack.enter_context(attention.installed())
        yield


def _replace(stack: ExitStack, module: Any, name: str, value: Any) -> None:
    """Set a name for as long as the stack lives; one that this version does not have is left out."""
    if not hasattr(module, name):
        return
    before = getattr(module, name)
    setattr(module, name, value)
    stack.callback(setattr, module, name, before)


def _answers_by(unpadded: bool) -> Any:
    """Whether a two-way mask may be left out: read off the padding mask, whose test allocates."""

    def answer(padding_mask: torch.Tensor | None, *_: Any, **__: Any) -> bool:
        if padding_mask is not None:
            padding_mask.all()
        return unpadded

    return answer
