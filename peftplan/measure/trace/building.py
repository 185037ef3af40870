"""Adapters put on a model that has no values: what peft asks of tensors meanwhile.

Some methods choose which weights to adapt, or fill permutations, by values; on meta tensors torch refuses to
tell. Shapes are all that matters, so a number is taken as 0, and what a mask sets as all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from peftplan.measure.trace.clusters import even_clusters, leading_directions

aten = torch.ops.aten
_MASKS = (torch.bool, torch.uint8)


class _WithoutValues(TorchDispatchMode):
    """Answers for the operations that meta tensors cannot: those whose result depends on values."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if not isinstance(first, torch.Tensor) or first.device.type != "meta":
            return func(*args, **kwargs)
        if func is aten._to_copy.default and kwargs.get("device") is not None:
            kwargs["device"] = first.device  # taken to the host and back again
        if func is aten._local_scalar_dense.default:
            return 0.0 if first.dtype.is_floating_point else 0
        if func is aten.nonzero.default:
            return _indices(first)
        if func is aten.bincount.default:
            weights = args[1] if len(args) > 1 else kwargs.get("weights")
            length = args[2] if len(args) > 2 else kwargs.get("minlength", 0)
            return torch.empty((length,), dtype=torch.int64 if weights is None else weights.dtype, device="meta")
        if func in (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default):
            args = (first, _as_indices(args[1]), *args[2:])
        return func(*args, **kwargs)


def _indices(mask: torch.Tensor) -> torch.Tensor:
    return torch.empty((mask.numel(), mask.dim()), dtype=torch.int64, device="meta")


def _as_indices(given: Any) -> list[Any]:
    """Masks among indices turned into the indices of all that they cover."""
    found: list[Any] = []
    for index in given:
        if isinstance(index, torch.Tensor) and index.dtype in _MASKS:
            found += _indices(index).unbind(1)
        else:
            found.append(index)
    return found


def _outer_and_diagonal(_: Any, inner: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What FRoD solves for, without values."""
    return weight.new_empty(weight.shape, dtype=torch.float32), weight.new_empty(
        (weight.shape[1],), dtype=torch.float32
    )


@contextmanager
def building() -> Iterator[None]:
    """While peft puts adapters on a model of meta tensors."""
    with ExitStack() as stack:
        boft, adamss = _module("peft.tuners.boft.layer"), _module("peft.tuners.adamss.layer")
        layer, frod = getattr(boft, "BOFTLayer", None), _module("peft.tuners.frod.model")
        for owner, name, stand_in in (
            (boft, "get_fbd_cuda", lambda: None),  # would compile a CUDA extension, which no fake tensor can run
            (layer, "perm2mat", lambda _, indices: torch.zeros((len(indices), len(indices)))),  # else one by one
            (
                frod,
                "_projection_from_weights",
                lambda matrices, _: matrices[0].new_empty((matrices[0].shape[1],) * 2),
            ),
            (getattr(frod, "FrodLayer", None), "_calculate_frod_u_and_lambda", _outer_and_diagonal),
            (adamss, "slice_pca", leading_directions),
            (adamss, "clustering_Z", even_clusters),
        ):
            if hasattr(owner, name):
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, stand_in)
        stack.enter_context(torch.device("meta"))
        stack.enter_context(_WithoutValues())
        yield


def _module(name: str) -> Any:
    """A module by its name; None where this release of peft has none."""
    try:
        return import_module(name)
    except ImportError:
        return None
