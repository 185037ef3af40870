"""Which blocks of a model are alike: the same modules, weights and settings, told from the model itself."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from peftplan.measure.trace.job import Job
from peftplan.measure.trace.model import build_model

_MAIN_SHARE = 0.95  # of the weights in all lists of blocks that the one list must hold


def block_kinds(job: Job) -> dict[str, Any] | None:
    """The list of blocks and a kind for each, numbered from 0; None where no single list holds them."""
    model = build_model(job.config, job.base_dtype, job.attention, None)
    lists = _outermost_lists(model)
    sizes = {name: sum(p.numel() for p in blocks.parameters()) for name, blocks in lists.items()}
    if not sizes:
        return None
    path = max(sizes, key=lambda name: sizes[name])
    if sizes[path] < _MAIN_SHARE * sum(sizes.values()):
        return None
    return {"path": path, "kinds": _kinds(list(lists[path]), model.config)}


def _outermost_lists(model: Any) -> dict[str, torch.nn.ModuleList]:
    """Lists of modules that stand in no other list, by name."""
    found: dict[str, torch.nn.ModuleList] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not any(name.startswith(f"{known}.") for known in found):
            found[name] = module
    return found


def _kinds(blocks: list[Any], config: Any) -> list[int]:
    per_block = [
        value for value in config.to_dict().values() if isinstance(value, list) and len(value) == len(blocks)
    ]
    settings = [_settings(block) for block in blocks]
    indices = {key for key in settings[0] if all(given.get(key) == number for number, given in enumerate(settings))}
    numbers: dict[Hashable, int] = {}
    kinds = []
    for number, (block, given) in enumerate(zip(blocks, settings)):
        shapes = tuple((name, tuple(p.shape), str(p.dtype)) for name, p in block.named_parameters())
        classes = tuple((name, type(module).__qualname__) for name, module in block.named_modules())
        own = tuple(sorted((key, repr(value)) for key, value in given.items() if key not in indices))
        listed = tuple(repr(values[number]) for values in per_block)
        kinds.append(numbers.setdefault((shapes, classes, own, listed), len(numbers)))
    return kinds


def _settings(block: Any) -> dict[tuple[str, str], Any]:
    """Plain values that the modules of a block hold, by module and name."""
    return {
        (path, name): value
        for path, module in block.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and not name.startswith("_")
    }
