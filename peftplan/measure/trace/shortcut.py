"""Answers an operation from one like it that ran before: a training step repeats a few hundred of them.

What a fake tensor's operation gives depends on the shapes, strides and types of what it is given. The first
of a kind runs through torch's fake tensors; its results are described, and the next one of the kind is made
from the description, at a fraction of the cost. What depends on values, changes a tensor's layout in place
or is not described to the last detail runs through torch every time.

Source: torch-fake-tensors (fake_tensor.py, what its own cache compares).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

try:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
except ImportError as error:  # pragma: no cover - a torch that has none of them
    raise ImportError(f"torch {torch.__version__} has no fake tensors of the kind that the trace needs") from error

_NEVER = (
    torch.Tag.dynamic_output_shape,
    torch.Tag.data_dependent_output,
    torch.Tag.inplace_view,
)
_RESHAPE_STORAGES = ("resize_", "resize_as_", "set_")
_NO_ELEMENTS = (0,)
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)

# A result: ("given", i), ("view", i, …) of the i-th tensor given, ("new", …), ("value", v), or a list of them.
Described = tuple[Any, ...]


class Uncertain(Exception):
    """An operation that must run through torch."""


class Shortcut:
    """Runs operations on the fake tensors of one mode."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.known: dict[Hashable, Described] = {}
        self.refused: set[Any] = set()
        self.attributes: dict[torch.device, dict[str, Any]] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation's results."""
        if func in self.refused:
            return func(*args, **kwargs)
        given: list[Any] = []
        try:
            key = (func, _key(args, given), _key(tuple(kwargs.items()), given) if kwargs else ())
        except Uncertain:
            return func(*args, **kwargs)
        described = self.known.get(key)
        if described is not None:
            return self._make(described, given)
        if not _may_be_described(func):
            self.refused.add(func)
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        try:
            self.known[key] = _describe(out, given)
        except Uncertain:
            self.refused.add(func)
        return out

    def _make(self, described: Described, given: list[Any]) -> Any:
        kind = described[0]
        if kind == "new":
            _, shape, stride, dtype, device = described
            with torch._C._DisableTorchDispatch():
                made = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
                return self._fake(made, device)
        if kind == "given":
            return given[described[1]]
        if kind == "view":
            _, number, shape, stride, dtype, device, offset = described
            with torch._C._DisableTorchDispatch():
                made = torch.empty_strided(_NO_ELEMENTS, _NO_ELEMENTS, dtype=dtype, device="meta")
                made.set_(given[number].untyped_storage(), offset, shape, stride)
                return self._fake(made, device)
        if kind == "value":
            return described[1]
        parts = [self._make(part, given) for part in described[1]]
        return tuple(parts) if kind == "tuple" else parts

    def _fake(self, meta: torch.Tensor, device: torch.device) -> Any:
        """A fake tensor around a meta tensor, as its constructor makes it; attributes are those of a first one."""
        attributes = self.attributes.get(device)
        if attributes is None:
            first = FakeTensor(self.mode, meta, device)
            self.attributes[device] = dict(vars(first))
            return first
        made = torch.Tensor._make_subclass(
            FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=device
        )
        torch._C._set_throw_on_mutable_data_ptr(made)
        vars(made).update(attributes)
        return made


def _key(values: tuple[Any, ...], given: list[Any]) -> tuple[Any, ...]:
    """What tells these arguments from others; the tensors among them are gathered in `given`."""
    parts: list[Any] = []
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if value.constant is not None or value.is_conj() or value.is_neg():
                raise Uncertain
            given.append(value)
            parts.append((value.shape, value.stride(), value.storage_offset(), value.dtype, value.fake_device))
        elif kind is tuple or kind is list:
            parts.append((kind, _key(tuple(value), given)))
        elif kind in _PLAIN or isinstance(value, _PLAIN):
            parts.append((kind, value))  # 1 and 1.0 are not the same argument
        else:
            raise Uncertain
    return tuple(parts)


def _may_be_described(func: Any) -> bool:
    if not isinstance(func, torch._ops.OpOverload):
        return False
    return func._opname not in _RESHAPE_STORAGES and not any(tag in func.tags for tag in _NEVER)


def _describe(out: Any, given: list[Any]) -> Described:
    if out is None or type(out) in (int, float, bool):
        return ("value", out)
    if isinstance(out, (tuple, list)):
        kind = "tuple" if isinstance(out, tuple) else "list"
        return (kind, tuple(_describe(part, given) for part in out))
    if type(out) is not FakeTensor or out.constant is not None or out.layout is not torch.strided:
        raise Uncertain
    for number, tensor in enumerate(given):
        if out is tensor:
            return ("given", number)
    about = (tuple(out.shape), out.stride(), out.dtype, out.fake_device)
    if not all(type(size) is int for size in (*about[0], *about[1])):
        raise Uncertain
    storage = out.untyped_storage()._cdata
    for number, tensor in enumerate(given):
        if tensor.untyped_storage()._cdata == storage:
            return ("view", number, *about, out.storage_offset())
    needed = _extent(out) * out.element_size()
    if out.storage_offset() or out.untyped_storage().nbytes() != needed:
        raise Uncertain
    return ("new", *about)


def _extent(tensor: torch.Tensor) -> int:
    """Elements from the first to the last of a strided tensor."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
