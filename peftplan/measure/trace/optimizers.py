"""The real optimizers under the names of peftplan's table.

bitsandbytes' own classes run; only what would call into its CUDA library is answered here. Managed memory
lies outside torch's allocator: a paged state is a tensor on a device that the tracker does not watch.

Source: bnb-optimizers (optim/optimizer.py, functional.get_paged).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch.utils._mode_utils import no_dispatch

from peftplan.errors import BadInput, MachineLacks
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.optimizer_makers import (
    LEARNING_RATE,
    MAKERS,
    Ask,
    InBackward,
    Several,
    in_place_of_devices,
)
from peftplan.optimizers import OPTIMIZERS
from peftplan.optimizers.asked import FOR_WHOLE_MODELS, refusal

Group = Sequence[torch.nn.Parameter]


def make_for(
    job: Job, model: Any, groups: Sequence[Group], named: Sequence[tuple[str, Any]], wide: Iterable[Any]
) -> Any:
    """The job's optimizer over these groups of parameters, which `named` calls by the model's names."""
    row, name = OPTIMIZERS.get(job.optimizer), job.optimizer.removesuffix("-layerwise")
    asked = Ask(name, groups, named, model, dict(job.optimizer_options))
    if row is None:
        return _make(asked, wide)
    words = refusal(row, [weight for _, weight in asked.weights()], row.options(**asked.options))
    if row.whole_model and not all(parameter.requires_grad for parameter in model.parameters()):
        words = FOR_WHOLE_MODELS
    if words:
        raise BadInput(f"--optimizer {row.name}: {words}")
    if row.late or not (job.optimizer_in_backward or row.in_backward):
        return _make(asked, wide)
    return InBackward({p: _make(asked._replace(groups=[[p]], named=[(called, p)]), wide) for called, p in named})


def make_optimizer(name: str, groups: Sequence[Group], wide: Iterable[Any] = ()) -> Any:
    """The optimizer, over these groups of parameters; of modules in `wide` bitsandbytes keeps 32-bit states."""
    return _make(Ask(name, groups, [], None, {}), wide)


def _make(ask: Ask, wide: Iterable[Any]) -> Any:
    loaded = sys.modules.get("bitsandbytes.optim")
    if loaded is not None:
        loaded.GlobalOptimManager.get_instance().initialize()  # of an earlier run nothing is left
    if ask.name in MAKERS:
        return MAKERS[ask.name](ask)
    made = _MAKERS.get(ask.name)
    if made is None:
        raise BadInput(f"--optimizer {ask.name}: the trace has {', '.join((*_MAKERS, *MAKERS))}")
    optimizer = made(ask.rows)
    if ask.name.endswith("8bit"):
        manager = import_module("bitsandbytes.optim").GlobalOptimManager.get_instance()
        for module in wide:
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer


def embeddings(model: Any) -> list[Any]:
    """Modules whose 8-bit optimizer states Trainer keeps in 32 bits."""
    return [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]


def _torch(name: str, **options: Any) -> Callable[[list[dict[str, Any]]], Any]:
    return lambda rows: getattr(torch.optim, name)(rows, lr=LEARNING_RATE, **options)


def _adafactor(rows: list[dict[str, Any]]) -> Any:
    from transformers import Adafactor

    return Adafactor(rows, lr=LEARNING_RATE, scale_parameter=False, relative_step=False)


def _bitsandbytes(name: str, **options: Any) -> Callable[[list[dict[str, Any]]], Any]:
    def make(rows: list[dict[str, Any]]) -> Any:
        try:
            import bitsandbytes
        except ImportError:
            raise MachineLacks(
                f"{name} is bitsandbytes', which is not installed; pip install 'peftplan[trace]'"
            ) from None
        with _real_values():  # its quantisation maps are computed from values
            return getattr(bitsandbytes.optim, name)(rows, lr=LEARNING_RATE, **options)

    return make


def _real_values() -> Any:
    fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    if fake is None:
        return nullcontext()
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    return unset_fake_temporarily()


_MAKERS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "adamw": _torch("AdamW", foreach=True),
    "adamw-fused": _torch("AdamW", fused=True),
    "sgd": _torch("SGD", foreach=True),
    "sgd-momentum": _torch("SGD", momentum=0.9, foreach=True),
    "rmsprop": _torch("RMSprop", foreach=True),
    "adagrad": _torch("Adagrad", foreach=True),
    "adafactor-torch": _torch("Adafactor", foreach=True),
    "adafactor": _adafactor,
    "adamw-8bit": _bitsandbytes("AdamW8bit"),
    "paged-adamw-8bit": _bitsandbytes("PagedAdamW8bit"),
    "paged-adamw": _bitsandbytes("PagedAdamW32bit"),
    "ademamix": _bitsandbytes("AdEMAMix"),
    "ademamix-8bit": _bitsandbytes("AdEMAMix8bit"),
    "paged-ademamix": _bitsandbytes("PagedAdEMAMix"),
    "paged-ademamix-8bit": _bitsandbytes("PagedAdEMAMix8bit"),
    "lion": _bitsandbytes("Lion32bit"),
    "lion-8bit": _bitsandbytes("Lion8bit"),
    "paged-lion": _bitsandbytes("PagedLion32bit"),
    "paged-lion-8bit": _bitsandbytes("PagedLion8bit"),
    "rmsprop-bnb": _bitsandbytes("RMSprop32bit"),
    "rmsprop-bnb-8bit": _bitsandbytes("RMSprop8bit"),
}


def states(optimizer: Any) -> list[torch.Tensor]:
    """Every tensor that the optimizer keeps on the device."""
    return [value for value in _all_states(optimizer) if not getattr(value, "is_paged", False)]


def paged_bytes(optimizer: Any) -> int:
    """Bytes of the states that lie in managed memory."""
    return sum(value.nbytes for value in _all_states(optimizer) if getattr(value, "is_paged", False))


def host_bytes(optimizer: Any) -> int:
    """Bytes of what the optimizer keeps in the host's memory; pinned blocks are powers of two."""
    total = 0
    for own in getattr(optimizer, "optim_dict", {}).values():
        for weight in (p for group in own.param_groups for p in group["params"]):
            total += 2 * (1 << (weight.nbytes - 1).bit_length())  # and its gradient's
        total += sum(state.nbytes for state in _all_states(own))
    return total


def _all_states(optimizer: Any) -> list[torch.Tensor]:
    if isinstance(optimizer, Several):
        return [value for part in optimizer.parts for value in _all_states(part)]
    if hasattr(optimizer, "optim_dict"):  # on the host, but for small tensors
        return [] if optimizer.d_opt is None else _all_states(optimizer.d_opt)
    kept = [value for row in optimizer.state.values() for value in row.values()]
    for name in ("exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col"):  # AdaLomo's, by names
        kept += getattr(optimizer, name, {}).values()
    return [tensor for value in kept for tensor in _tensors(value)]


def _tensors(value: Any) -> list[torch.Tensor]:
    """The tensors that a state is made of."""
    if isinstance(value, torch.Tensor):
        parts = getattr(value, "tensor_attrs", ())  # torchao's packed states
        return [getattr(value, name) for name in parts] if parts else [value]
    made = getattr(value, "ortho_matrix", None)  # a projection of gradients
    return [made] if isinstance(made, torch.Tensor) else []


@contextmanager
def stepping() -> Iterator[None]:
    """While a step runs: nothing to wait for, and pages without a CUDA library."""
    try:
        library: Any = import_module("bitsandbytes.functional")
    except ImportError:
        library = None
    stand_ins: list[tuple[Any, str, Any]] = [(torch.cuda, "synchronize", lambda *_: None), *in_place_of_devices()]
    if library is not None:
        stand_ins += [
            (library, "torch", _TorchOfNumbers()),
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


class _TorchOfNumbers:
    """torch, whose norms are numbers: bitsandbytes hands the one of a weight to a kernel that takes a number."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def norm(tensor: torch.Tensor) -> float:
        """Computed, and taken as one."""
        torch.norm(tensor)
        return 1.0


def _pages(*shape: int, dtype: torch.dtype = torch.float32, device: Any = None) -> torch.Tensor:
    with no_dispatch():
        pages = torch.empty(shape, dtype=dtype, device="meta")
    pages.is_paged = True
    pages.page_deviceid = 0
    return pages
