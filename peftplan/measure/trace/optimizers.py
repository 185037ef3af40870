"""The real optimizers under the names of peftplan's table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from peftplan.errors import BadInput, MachineLacks

_LEARNING_RATE = 1e-4


def make_optimizer(name: str, parameters: Iterable[torch.nn.Parameter]) -> Any:
    """The optimizer, over these parameters."""
    rows = list(parameters)
    made = _MAKERS.get(name)
    if made is None:
        raise BadInput(f"--optimizer {name}: the trace has {', '.join(_MAKERS)}")
    return made(rows)


def _adamw(rows: list[torch.nn.Parameter]) -> Any:
    return torch.optim.AdamW(rows, lr=_LEARNING_RATE, foreach=True)


def _adamw_fused(rows: list[torch.nn.Parameter]) -> Any:
    return torch.optim.AdamW(rows, lr=_LEARNING_RATE, fused=True)


def _sgd(rows: list[torch.nn.Parameter]) -> Any:
    return torch.optim.SGD(rows, lr=_LEARNING_RATE, foreach=True)


def _sgd_momentum(rows: list[torch.nn.Parameter]) -> Any:
    return torch.optim.SGD(rows, lr=_LEARNING_RATE, momentum=0.9, foreach=True)


def _adafactor(rows: list[torch.nn.Parameter]) -> Any:
    from transformers import Adafactor

    return Adafactor(rows, lr=_LEARNING_RATE, scale_parameter=False, relative_step=False)


def _bitsandbytes(name: str) -> Callable[[list[torch.nn.Parameter]], Any]:
    def make(rows: list[torch.nn.Parameter]) -> Any:
        try:
            import bitsandbytes
        except ImportError:
            raise MachineLacks(
                f"{name} is bitsandbytes', which is not installed; pip install 'peftplan[trace]'"
            ) from None
        return getattr(bitsandbytes.optim, name)(rows, lr=_LEARNING_RATE)

    return make


_MAKERS: dict[str, Callable[[list[torch.nn.Parameter]], Any]] = {
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
    """Every tensor that the optimizer keeps."""
    return [value for row in optimizer.state.values() for value in row.values() if isinstance(value, torch.Tensor)]
