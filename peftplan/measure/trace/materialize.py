"""A model on the meta device made one of fake tensors on the device, ties and packed weights kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch

Make = Callable[[torch.Tensor], torch.Tensor]
# What bitsandbytes and peft read from a packed weight beside its bytes.
_OF_PACKED = (
    "quant_state",
    "blocksize",
    "compress_statistics",
    "quant_type",
    "quant_storage",
    "bnb_quantized",
    "has_fp16_weights",
)


def materialize(model: torch.nn.Module, make: Make) -> None:
    """Replace every parameter, buffer and quantisation tensor by `make` of it.

    A packed weight takes on bitsandbytes' class, by which peft tells it, beside that of fake tensors.
    """
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # the original is kept, so that ids stay its own

    def again(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = (make(tensor), tensor)
        return made[id(tensor)][0]

    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in made:
                made[id(parameter)] = (_parameter(parameter, make, again), parameter)
            module._parameters[name] = made[id(parameter)][0]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = again(buffer)


def _parameter(parameter: torch.nn.Parameter, make: Make, again: Make) -> torch.nn.Parameter:
    new = torch.nn.Parameter(make(parameter), requires_grad=parameter.requires_grad)
    for hook in (parameter._backward_hooks or {}).values():
        new.register_hook(hook)
    for name in _OF_PACKED:
        if hasattr(parameter, name):
            setattr(new, name, getattr(parameter, name))
    if type(parameter) is not torch.nn.Parameter:
        kinds: tuple[Any, Any] = type(new), type(parameter)
        new.__class__ = _both(*kinds)
    for holder, name in _tensors_of(parameter):
        setattr(holder, name, again(getattr(holder, name)))
    if getattr(parameter, "SCB", None) is not None:
        new.CB, new.SCB = new.data, again(parameter.SCB)
    return new


def as_packed(data: torch.Tensor, kind: type, fields: Mapping[str, Any]) -> torch.nn.Parameter:
    """Packed bytes as a weight of bitsandbytes' class, which is the fake tensors' too."""
    new = torch.nn.Parameter(data, requires_grad=False)
    kinds: tuple[Any, Any] = type(new), kind
    new.__class__ = _both(*kinds)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


@cache
def _both(kind: type, packed: type) -> type:
    """A class that is a fake tensor's and a packed weight's, under the latter's name."""
    return packed if issubclass(packed, kind) else type(packed.__name__, (kind, packed), {})


def _tensors_of(parameter: Any) -> Iterator[tuple[Any, str]]:
    """The tensors of a 4-bit weight's quantisation state: who holds them, under which name."""
    state = getattr(parameter, "quant_state", None)
    while state is not None:
        for name in ("absmax", "code", "offset"):
            if isinstance(getattr(state, name, None), torch.Tensor):
                yield state, name
        state = getattr(state, "state2", None)


def tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that a model holds, under the name of its parameter or buffer."""
    for name, parameter in model.named_parameters():
        yield name, parameter
        for holder, part in _tensors_of(parameter):
            yield name, getattr(holder, part)
        if getattr(parameter, "SCB", None) is not None:
            yield name, parameter.SCB
    for name, buffer in model.named_buffers():
        yield name, buffer
