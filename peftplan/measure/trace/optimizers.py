"""The real optimizers under the names of peftplan's table.

bitsandbytes' own classes run; only what would call into its CUDA library is answered here. Managed memory
lies outside torch's allocator: a paged state is a tensor on a device that the tracker does not watch.

Source: bnb-optimizers (optim/optimizer.py, functional.get_paged).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch.utils._mode_utils import no_dispatch

from peftplan.errors import BadInput, MachineLacks

_LEARNING_RATE = 1e-4
_EIGHT_BIT = ("adamw-8bit", "paged-adamw-8bit")

Group = Sequence[torch.nn.Parameter]


def make_optimizer(name: str, groups: Sequence[Group], wide: Iterable[Any] = ()) -> Any:
    """The optimizer, over these groups of parameters; of modules in `wide` bitsandbytes keeps 32-bit states."""
    made = _MAKERS.get(name)
    if made is None:
        raise BadInput(f"--optimizer {name}: the trace has {', '.join(_MAKERS)}")
    optimizer = made([{"params": list(group)} for group in groups])
    if name in _EIGHT_BIT:
        manager = import_module("bitsandbytes.optim").GlobalOptimManager.get_instance()
        manager.initialize()  # of an earlier run nothing is left
        for module in wide:
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer


def embeddings(model: Any) -> list[Any]:
    """Modules whose 8-bit optimizer states Trainer keeps in 32 bits."""
    return [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]


def _adamw(rows: list[dict[str, Any]]) -> Any:
    return torch.optim.AdamW(rows, lr=_LEARNING_RATE, foreach=True)


def _adamw_fused(rows: list[dict[str, Any]]) -> Any:
    return torch.optim.AdamW(rows, lr=_LEARNING_RATE, fused=True)


def _sgd(rows: list[dict[str, Any]]) -> Any:
    return torch.optim.SGD(rows, lr=_LEARNING_RATE, foreach=True)


def _sgd_momentum(rows: list[dict[str, Any]]) -> Any:
    return torch.optim.SGD(rows, lr=_LEARNING_RATE, momentum=0.9, foreach=True)


def _adafactor(rows: list[dict[str, Any]]) -> Any:
    from transformers import Adafactor

    return Adafactor(rows, lr=_LEARNING_RATE, scale_parameter=False, relative_step=False)


def _bitsandbytes(name: str) -> Callable[[list[dict[str, Any]]], Any]:
    def make(rows: list[dict[str, Any]]) -> Any:
        try:
            import bitsandbytes
        except ImportError:
            raise MachineLacks(
                f"{name} is bitsandbytes', which is not installed; pip install 'peftplan[trace]'"
            ) from None
        with _real_values():  # its quantisation maps are computed from values
            return getattr(bitsandbytes.optim, name)(rows, lr=_LEARNING_RATE)

    return make


def _real_values() -> Any:
    fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    if fake is None:
        return nullcontext()
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    return unset_fake_temporarily()


_MAKERS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "adamw": _adamw,
    "adamw-fused": _adamw_fused,
    "adamw-8bit": _bitsandbytes("AdamW8bit"),
    "paged-adamw-8bit": _bitsandbytes("PagedAdamW8bit"),
    "sgd": _sgd,
    "sgd-momentum": _sgd_momentum,
    "adafactor": _adafactor,
    "lion": _bitsandbytes("Lion32bit"),
}


def states(optimizer: Any) -> list[torch.Tensor]:
    """Every tensor that the optimizer keeps on the device."""
    return [value for value in _all_states(optimizer) if not getattr(value, "is_paged", False)]


def paged_bytes(optimizer: Any) -> int:
    """Bytes of the states that lie in managed memory."""
    return sum(value.nbytes for value in _all_states(optimizer) if getattr(value, "is_paged", False))


def _all_states(optimizer: Any) -> list[torch.Tensor]:
    return [value for row in optimizer.state.values() for value in row.values() if isinstance(value, torch.Tensor)]


@contextmanager
def stepping() -> Iterator[None]:
    """While a step runs: nothing to wait for, and pages without a CUDA library."""
    try:
        library: Any = import_module("bitsandbytes.functional")
    except ImportError:
        library = None
    stand_ins: list[tuple[Any, str, Any]] = [(torch.cuda, "synchronize", lambda *_: None)]
    if library is not None:
        stand_ins += [
            (library, "get_paged", _pages),
            (library, "fill", lambda *_, **__: None),
            (library, "prefetch_tensor", lambda *_, **__: None),
        ]
    before = [getattr(owner, name) for owner, name, _ in stand_ins]
    for owner, name, stand_in in stand_ins:
        setattr(owner, name, stand_in)
    try:
        yield
    finally:
        for (owner, name, _), original in zip(stand_ins, before):
            setattr(owner, name, original)


def _pages(*shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> torch.Tensor:
    with no_dispatch():
        pages = torch.empty(shape, dtype=dtype, device="meta")
    pages.is_paged = True
    pages.page_deviceid = 0
    return pages
