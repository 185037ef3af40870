"""Merging adapters into their base, layer by layer, as peft's merge_and_unload does: levels, and what is moved.

peft visits the modules in the order of definition. A layer's program runs on the bench; when the loop goes on, the
layer that has been merged is dropped with its adapters. So the level falls as the merge goes on, and of blocks
alike the first needs the most. Modules that were saved whole take their originals' places.

Source: peft-merge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from peftplan.errors import BadInput
from peftplan.memory.bench import Bench
from peftplan.memory.graph import APART, WITH_LAST
from peftplan.specs.formats import FP32, QuantFormat, allocated_bytes
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Embedding, Module
from peftplan.specs.tensors import Parameter

_BASE, _ORIGINAL = "base_layer", "original_module"


class Launch(NamedTuple):
    """Launches alike: what each reads, writes and computes, and in which type."""

    dtype: str
    num_flop: int
    num_bytes: int
    count: int  # type: ignore[assignment]  # a field, not the tuple's method


@dataclass(slots=True)
class Merge:
    """A merge's bytes on the device that runs it (on a GPU as its allocator rounds them) and on the host beside it.

    `peak_layer`: where the most is alive; empty where nothing is above what was loaded.
    """

    loaded_bytes: int
    peak_bytes: int
    peak_layer: str
    done_bytes: int
    host_bytes: int
    link_bytes: int
    launches: list[Launch] = field(default_factory=list)
    multiplies: bool = False  # whether any product is made

    @property
    def num_flop(self) -> int:
        """Of all products; sums and casts count none."""
        return sum(launch.num_flop * launch.count for launch in self.launches)

    @property
    def num_bytes(self) -> int:
        """Read and written by all launches."""
        return sum(launch.num_bytes * launch.count for launch in self.launches)


def play_merge(model: ModelSpec, host: bool, safe: bool = False) -> Merge:
    """Merge the adapters of a model that its method has rewritten; `host`: on the CPU, `safe`: looking for NaNs."""
    loaded = level = standing_bytes(model, host)
    found = Merge(loaded, loaded, "", loaded, 0, 0)
    groups = list(_groups(model))
    holders = Counter(id(p) for layers, _ in groups for _, module in layers for p in _own(module))
    for layers, count in groups:
        merged = [_Merged.of(name, module, host, safe, holders) for name, module in layers]
        of_block = sum(one.change_bytes for one in merged)
        for start in {level, level + (count - 1) * of_block}:  # between the first and the last block it is linear
            for one in merged:
                if start + one.peak_bytes > found.peak_bytes:
                    found.peak_bytes, found.peak_layer = start + one.peak_bytes, one.name
                start += one.change_bytes
        level += count * of_block
        for one in merged:
            found.host_bytes = max(found.host_bytes, one.host_bytes)
            found.link_bytes += count * one.link_bytes
            found.launches += (Launch(*launch, count) for launch in one.launches)
    found.done_bytes, found.multiplies = level, found.num_flop > 0
    return found


class _Merged(NamedTuple):
    """One layer's merge: what it needs above the level that it finds, and how it changes that."""

    name: str
    peak_bytes: int
    change_bytes: int
    host_bytes: int
    link_bytes: int
    launches: list[tuple[str, int, int]]

    @classmethod
    def of(cls, name: str, module: Module, host: bool, safe: bool, holders: Counter[int]) -> _Merged:
        """Play it; `holders`: by how many layers that are still to be merged a parameter is held."""
        bench = _played(module, name, host, safe)
        holders.subtract(id(parameter) for parameter in _own(module))
        dropped = [parameter for parameter in _own(module) if not holders[id(parameter)]]
        change = bench.level_bytes - sum(_room(size, host) for p in dropped for _, size in p.loaded_storages())
        found = cls(name, bench.peak_bytes, change, bench.host_peak_bytes, bench.link_bytes, list(_launches(bench)))
        bench.placed.clear()
        return found


def unpacking_bytes(model: ModelSpec) -> int:
    """The most while transformers unpacks a model that bitsandbytes packed, rounded as the GPU's allocator does.

    Layer after layer is unpacked, twice each, and what was packed stays to the end: the loop holds every module it
    has met. 8-bit weights unpack to fp32 and are cast. Source: transformers-dequantize.
    """
    level = peak = standing_bytes(model, False)
    for layers, count in _packed_layers(model):
        of_block = sum(_unpacked(p)[0] for p in layers)
        for start in {level, level + (count - 1) * of_block}:
            for parameter in layers:
                kept, most = _unpacked(parameter)
                peak, start = max(peak, start + most), start + kept
        level += count * of_block
    return peak


def _unpacked(weight: Parameter) -> tuple[int, int]:
    """What one weight leaves unpacked, and the most meanwhile."""
    quant = weight.quant
    assert isinstance(quant, QuantFormat)
    kept = allocated_bytes(weight.numel * weight.dtype.itemsize)
    if quant.kind == "int8":
        wide = allocated_bytes(4 * weight.numel)
        return kept, 2 * wide + (kept if weight.dtype is not FP32 else 0)
    scales = 4 * -(-weight.numel // quant.block_size) if quant.double_quant else 0
    return kept, 2 * kept + allocated_bytes(scales)


def _packed_layers(model: ModelSpec) -> Iterator[tuple[list[Parameter], int]]:
    for module, count, _ in model.groups():
        found = {id(p): p for _, p in module.named_parameters() if isinstance(p.quant, QuantFormat)}
        yield list(found.values()), count


def standing_bytes(model: ModelSpec, host: bool) -> int:
    """Bytes of all tensors of a model as it was loaded."""
    return sum(
        _room(size, host) * count
        for _, parameter, count in model.parameters()
        for _, size in parameter.loaded_storages()
    )


def _room(size: int, host: bool) -> int:
    return size if host else allocated_bytes(size)


def _played(module: Module, name: str, host: bool, safe: bool) -> Bench:
    bench = Bench(host, safe)
    bench.module = name
    if _ORIGINAL in module.children:
        return bench
    merge = getattr(module, "merge", None)
    if merge is None:
        raise BadInput(
            f"how peft merges {type(module).__name__} layers is not in the closed form ({name}); "
            "take --engine trace"
        )
    merge(bench)
    return bench


def _own(module: Module) -> list[Parameter]:
    """What ends with a layer: its adapters, or the original whose place its copy takes."""
    kept = module.children.get("modules_to_save") or _innermost(module)
    left = {id(parameter) for _, parameter in kept.named_parameters()}
    left |= {id(module.parameters[name]) for name in module.kept_by_model if name in module.parameters}
    return list({id(p): p for _, p in module.named_parameters() if id(p) not in left}.values())


def _innermost(module: Module) -> Module:
    """What stands beside the adapters, whatever lies around it."""
    while _BASE in module.children:
        module = module.children[_BASE]
    return module


def _groups(model: ModelSpec) -> Iterator[tuple[list[tuple[str, Module]], int]]:
    """Layers that are merged, in peft's order - embeddings, blocks, what follows them - and how often each."""
    stem = list(_wrappers(model.stem, ""))
    yield [(name, module) for name, module in stem if _is_embedding(module)], 1
    for run in model.runs:
        if run.count:
            yield list(_wrappers(run.block, f"{run.path}.{run.first_index}")), run.count
    yield [(name, module) for name, module in stem if not _is_embedding(module)], 1


def _wrappers(module: Module, prefix: str) -> Iterator[tuple[str, Module]]:
    """Layers beside a base below a module; one around another merges that too."""
    for name, child in module.children.items():
        path = f"{prefix}.{name}" if prefix else name
        if _BASE in child.children or _ORIGINAL in child.children:
            yield path, child
        else:
            yield from _wrappers(child, path)


def _is_embedding(module: Module) -> bool:
    return isinstance(module.children.get(_ORIGINAL) or _innermost(module), Embedding)


def _launches(bench: Bench) -> Iterator[tuple[str, int, int]]:
    for record in (*bench.records, *bench.in_place):
        if record.read == APART:
            continue
        read = record.nbytes if record.read is None else 0 if record.read == WITH_LAST else record.read
        yield record.dtype.short, record.num_flop, read + record.nbytes
