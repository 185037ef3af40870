"""Where gradients meet: whether autograd's engine would add the second into the first.

It does when nothing but its own buffer refers to the first. Under a dispatch mode it does not dare to, as
tensors may be of any kind then; so the question is answered here, by counting who refers to the tensor. What
the counts are for a tensor that the engine alone holds depends on the releases of torch and Python: one sum
of the engine is watched, and later ones are compared with it.

Source: torch 2.13 autograd/input_buffer.cpp (can_accumulate_inplace).
"""

from __future__ import annotations

from functools import cache
from sys import getrefcount
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ADD = torch.ops.aten.add.Tensor
_IS_DENSE = torch.ops.aten.is_non_overlapping_and_dense.default


References = tuple[int, int, int]


def adds_into_first(args: tuple[Any, ...], engines: References) -> bool:
    """Whether `add(*args)` in backward is the engine's and a sum into its first operand.

    `engines` is what `engines_references` found, outside of any backward.
    """
    if len(args) != 2 or not isinstance(args[1], torch.Tensor) or _references(args) != engines:
        return False
    first, second = args
    return bool(first.dtype == second.dtype and first.shape == second.shape and _IS_DENSE(first))


def _references(args: tuple[Any, ...]) -> References:
    """How often Python refers to the first operand, C++ to it, and tensors to its storage."""
    storage = args[0].untyped_storage()
    return getrefcount(args[0]), args[0]._use_count(), torch._C._storage_Use_Count(storage._cdata)


@cache
def engines_references() -> References:
    """The references to the first operand of a sum when the engine alone holds it."""
    watch = _Watch()
    with torch.enable_grad(), watch:
        x = torch.ones(1, requires_grad=True) * 2
        (x * 2 + x * 2).backward()
    return watch.last


class _Watch(TorchDispatchMode):
    """Counts the references at each sum; the last one is the engine's."""

    last: References = (0, 0, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _ADD:
            self.last = _references(args)
        return func(*args, **kwargs or {})
