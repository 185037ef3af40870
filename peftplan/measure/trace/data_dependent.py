"""Operations whose results depend on values: what they answer on fake tensors.

The values are those that `values` follows. Where these are unknown - they come from floating-point numbers -
an answer is assumed, and the assumption is put among the recording's notes, in words.

Source: torch-indexing (IndexingUtils.h: masks become indices; cuda/IndexKernel.cpp: masked_select).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from peftplan.measure.trace.values import Unknown, computed, know, known

if TYPE_CHECKING:
    from peftplan.measure.trace.tracker import Kernel, Tracker

aten = torch.ops.aten
_MASKS = (torch.bool, torch.uint8)
Args = tuple[Any, ...]
Named = dict[str, Any]


class Answers:
    """What answers for each such operation; `note` is told what had to be assumed."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note

    def kernels(self) -> dict[Any, Kernel]:
        """By operation."""
        found: dict[Any, Kernel] = {
            aten._local_scalar_dense.default: self.number,
            aten.nonzero.default: self.nonzero,
            aten.index.Tensor: self.indexed,
            aten.index_put.default: self.put,
            aten.index_put_.default: self.put,
            aten._index_put_impl_.default: self.indexed,
            aten.masked_select.default: self.masked_select,
            aten.equal.default: self.same,
            aten.repeat_interleave.Tensor: self.shaped_by_values,
        }
        for name in ("_unique2", "unique_consecutive", "unique_dim", "bincount"):
            found[getattr(aten, name).default] = self.shaped_by_values
        return found

    def number(self, tracker: Tracker, func: Any, args: Args, kwargs: Named) -> Any:
        """item(), bool() and the like."""
        tensor = args[0]
        found = known(tensor)
        if found is not None:
            self._say(found.assumed)
            with torch._C._DisableTorchDispatch():  # the mode of fake tensors is on
                return found.tensor.item()
        try:
            return func(*args, **kwargs)  # a constant of the code's own has its value
        except RuntimeError:
            pass
        if tensor.dtype is torch.bool:
            self.note(f"a test of values in {_place(tracker)} is taken to fail")
            return False
        self.note(f"a number that is read in {_place(tracker)} is taken as 1")
        return 1.0 if tensor.dtype.is_floating_point else 1

    def nonzero(self, tracker: Tracker, func: Any, args: Args, kwargs: Named) -> Any:
        """Indices of what is not zero: [how many, dimensions]."""
        mask = args[0]
        found = known(mask)
        if found is None:
            self.note(f"a mask that depends on values in {_place(tracker)} is taken as set everywhere")
            made = torch.empty((mask.numel(), mask.dim()), dtype=torch.int64, device=mask.device)
            return tracker.result(made, func._name)
        self._say(found.assumed)
        with torch._C._DisableTorchDispatch():
            values = found.tensor.nonzero()
        made = torch.empty(values.shape, dtype=torch.int64, device=mask.device)
        know(made, values, found.assumed)
        return tracker.result(made, func._name)

    def indexed(self, tracker: Tracker, func: Any, args: Args, kwargs: Named) -> Any:
        """A mask among the indices is turned into the indices of what it sets."""
        places: list[torch.Tensor | None] = []
        for index in args[1]:
            if index is not None and index.dtype in _MASKS:
                true = self.nonzero(tracker, aten.nonzero.default, (index,), {})
                places += [true.select(1, dim) for dim in range(index.dim())]
            else:
                places.append(index)
        return tracker.ordinary(func, (args[0], places, *args[2:]), kwargs)

    def put(self, tracker: Tracker, func: Any, args: Args, kwargs: Named) -> Any:
        """A number put where a mask is set is a masked fill; all else goes by indices."""
        masks = [index for index in args[1] if index is not None]
        value, adds = args[2], len(args) > 3 and args[3]
        if len(masks) == 1 and masks[0].dtype in _MASKS and value.dim() == 0 and not adds:
            fill = aten.masked_fill_.Tensor if func is aten.index_put_.default else aten.masked_fill.Tensor
            return tracker.ordinary(fill, (args[0], masks[0], value), {})
        return self.indexed(tracker, func, args, kwargs)

    def masked_select(self, tracker: Tracker, func: Any, args: Args, kwargs: Named) -> Any:
        """An index by the mask, after both have taken one shape."""
        tensor, mask = args
        shape = torch.broadcast_shapes(tensor.shape, mask.shape)
        true = self.nonzero(tracker, aten.nonzero.default, (mask.expand(shape),), {})
        made = torch.empty((true.shape[0],), dtype=tensor.dtype, device=tensor.device)
        return tracker.result(made, func._name)

    def shaped_by_values(self, tracker: Tracker, func: Any, args: Args, kwargs: Named) -> Any:
        """Results as large as the values make them."""
        try:
            made, assumed = computed(func, args, kwargs)
        except Unknown:
            self.note(f"the {args[0].numel()} values that {_place(tracker)} gives {func._opname} are taken as 1")
            with torch._C._DisableTorchDispatch():
                ones = torch.ones(args[0].shape, dtype=torch.int64)
                made, assumed = func(ones, *args[1:], **kwargs), frozenset()
        self._say(assumed)
        many = isinstance(made, (tuple, list))
        out = []
        for values in made if many else (made,):
            fake = torch.empty(values.shape, dtype=values.dtype, device=args[0].device)
            know(tracker.result(fake, func._name), values, assumed)
            out.append(fake)
        return tuple(out) if many else out[0]

    def same(self, tracker: Tracker, func: Any, args: Args, kwargs: Named) -> bool:
        """torch.equal."""
        try:
            made, assumed = computed(func, args, kwargs)
        except Unknown:
            self.note(f"two tensors that are compared in {_place(tracker)} are taken to differ")
            return False
        self._say(assumed)
        return bool(made)

    def _say(self, assumed: frozenset[str]) -> None:
        for text in assumed:
            self.note(text)


def _place(tracker: Tracker) -> str:
    """The module that runs, for all blocks alike."""
    parts = tracker.place().removeprefix("base_model.model.").split(".")
    return ".".join("*" if part.isdigit() else part for part in parts) or "the model"
