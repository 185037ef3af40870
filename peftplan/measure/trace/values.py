"""Values of small integer tensors while a trace runs: a fake tensor has a shape, and at times code asks for more.

Ids, masks, positions, and all that is computed from them - comparisons, sums, sorted orders, counts - are
computed a second time on the CPU, beside the fake tensors, so that code which asks gets the answer that fits.
What a router chooses comes from floating-point scores, which nobody has: it is taken as balanced.
"""

from __future__ import annotations

from typing import Any

import torch

aten = torch.ops.aten
# Beyond so many elements values are not followed: 4 MiB of booleans.
_LARGEST = 1 << 22
_TOKENS, _SPECIAL_TOKENS = 50, 10
_ATTRIBUTE = "_peftplan_values"
_CPU = torch.device("cpu")
# One number drawn from 0 to 1 is taken as the middle.
_DRAWN = (aten.rand.default, aten.uniform_.default)
# Masks that are written in floating-point numbers, as peft puts them before a prompt: what makes and joins them.
_OF_MASKS = (
    aten.ones.default,
    aten.zeros.default,
    aten._to_copy.default,
    aten.cat.default,
    aten.view.default,
)
_LARGEST_FLOATING = _LARGEST // 4
_NEVER_TRUE = (aten.isinf.default, aten.isnan.default)
# Indices that these give depend on scores: (which result holds them, where the dimension stands among arguments).
_CHOICES: dict[Any, tuple[int, int, int]] = {
    aten.topk.default: (1, 2, -1),
    aten.sort.default: (1, 1, -1),
    aten.sort.stable: (1, 2, -1),
    aten.max.dim: (1, 1, -1),
    aten.min.dim: (1, 1, -1),
    aten.argsort.default: (0, 1, -1),
    aten.argmax.default: (0, 1, -1),
    aten.multinomial.default: (0, 9, -1),
}


class Unknown(Exception):
    """An argument whose values are not followed."""


class Known:
    """The values of a tensor, on the CPU, and what had to be assumed for them."""

    __slots__ = ("assumed", "tensor")

    def __init__(self, tensor: torch.Tensor, assumed: frozenset[str]) -> None:
        self.tensor, self.assumed = tensor, assumed


def known(tensor: Any) -> Known | None:
    """What is known of a tensor's values."""
    found = vars(tensor).get(_ATTRIBUTE) if isinstance(tensor, torch.Tensor) else None
    return found if isinstance(found, Known) else None


def know(tensor: torch.Tensor, values: torch.Tensor, assumed: frozenset[str] = frozenset()) -> None:
    """State a tensor's values."""
    setattr(tensor, _ATTRIBUTE, Known(values, assumed))


def know_tokens(ids: torch.Tensor) -> None:
    """State a batch's token ids: some text, none of it padding or another special token."""
    with torch._C._DisableTorchDispatch():
        know(ids, torch.arange(ids.numel(), device=_CPU).reshape(ids.shape) % _TOKENS + _SPECIAL_TOKENS)


def count(places: torch.Tensor, length: int) -> None:
    """State positions: from zero on, and from zero again after so many."""
    with torch._C._DisableTorchDispatch():
        know(places, torch.arange(places.numel(), device=_CPU).reshape(places.shape) % length)


def follow(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """After an operation: compute what it gives a second time if its results are integers of known values."""
    if isinstance(out, torch.Tensor):
        if func in _DRAWN and out.numel() == 1:
            with torch._C._DisableTorchDispatch():
                know(out, torch.full(out.shape, 0.5, dtype=out.dtype, device=_CPU))
        elif not out.dtype.is_floating_point or (func in _OF_MASKS and out.numel() <= _LARGEST_FLOATING):
            _follow(func, args, kwargs, (out,), False)
    elif isinstance(out, (tuple, list)) and any(
        isinstance(part, torch.Tensor) and not part.dtype.is_floating_point for part in out
    ):
        _follow(func, args, kwargs, tuple(out), True)


def computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, frozenset[str]]:
    """The operation on known values; raises Unknown where one is missing."""
    assumed: set[str] = set()
    here = [_here(value, assumed) for value in args]
    named = {name: _here(value, assumed) for name, value in kwargs.items()}
    with torch._C._DisableTorchDispatch():
        return func(*here, **named), frozenset(assumed)


def _follow(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: tuple[Any, ...], many: bool) -> None:
    if any(isinstance(part, torch.Tensor) and part.numel() > _LARGEST for part in out):
        return
    choice = _CHOICES.get(func)
    if choice is not None and args[0].dtype.is_floating_point:
        place, at, default = choice
        dim = args[at] if len(args) > at else kwargs.get("dim", default)
        if dim is not None:
            know(out[place], *_balanced(out[place], args[0], int(dim), func))
        return
    if func in _NEVER_TRUE:
        with torch._C._DisableTorchDispatch():
            know(out[0], torch.zeros(out[0].shape, dtype=torch.bool, device=_CPU))
        return
    try:
        made, assumed = computed(func, args, kwargs)
    except (Unknown, RuntimeError, NotImplementedError, IndexError):  # or one that the CPU has not
        for part in out:
            if isinstance(part, torch.Tensor):
                vars(part).pop(_ATTRIBUTE, None)
        return
    for part, values in zip(out, made if many else (made,)):
        if isinstance(part, torch.Tensor) and (not part.dtype.is_floating_point or func in _OF_MASKS):
            know(part, values, assumed)


def _here(value: Any, assumed: set[str]) -> Any:
    if isinstance(value, torch.Tensor):
        found = known(value)
        if found is None:
            if type(value) is torch.Tensor and value.device == _CPU:
                return value  # no fake: numbers that stand in the code
            raise Unknown
        assumed.update(found.assumed)
        return found.tensor
    if isinstance(value, (tuple, list)):
        return type(value)(_here(part, assumed) for part in value)
    if isinstance(value, torch.device):
        return _CPU
    return value


def _balanced(
    indices: torch.Tensor, scores: torch.Tensor, dim: int, func: Any
) -> tuple[torch.Tensor, frozenset[str]]:
    """Indices that choose each of the positions equally often, row after row, none twice in a row."""
    choices = scores.shape[dim] if scores.dim() else 1
    kept = indices.dim() == scores.dim()
    with torch._C._DisableTorchDispatch():
        shape = list(indices.shape)
        each = shape[dim] if kept and shape else 1
        flat = torch.arange(indices.numel(), device=_CPU) % max(choices, 1)
        if kept and shape:
            moved = [size for place, size in enumerate(shape) if place != dim % len(shape)]
            values = flat.reshape(*moved, each).movedim(-1, dim).contiguous()
        else:
            values = flat.reshape(shape)
    return values, frozenset((f"routing is taken as balanced: each of {choices} choices is made equally often",))
