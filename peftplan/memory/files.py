"""Files on disk, to the byte where their names are known: safetensors, shards, what a checkpoint holds.

A safetensors file is eight bytes of length, a JSON header padded to a multiple of eight, and the tensors.
transformers fills shards in the order of the state dict and begins another where one more tensor would exceed the
limit; a tensor above it has a file of its own. peft saves an adapter's tensors under their modules' names, without
the adapter's own.

Source: safetensors-format, transformers-save, peft-save.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import NamedTuple

from peftplan.specs.formats import BF16, FP16, FP32, INT8, UINT8, DType, QuantFormat
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Module
from peftplan.specs.tensors import Parameter
from peftplan.units import round_up

_NAMES = {FP32: "F32", BF16: "BF16", FP16: "F16", UINT8: "U8", INT8: "I8"}
_METADATA = '"__metadata__":{"format":"pt"}'
_LENGTH_BYTES, _ALIGNMENT = 8, 8
_QUANT_STATE_BYTES = 176  # as bitsandbytes writes it as JSON, with two sizes of five digits
_PEFT_PREFIX = "base_model.model."
_SAVED_WHOLE, _PROMPTS = ".modules_to_save.", "prompt_encoder.embedding.weight"
# How names of the closed form's modules become keys of peft's state dict.
_RENAMED = (
    (".lora_magnitude_vector.weight", ".lora_magnitude_vector"),
    (".rows.trainable_tokens_delta", ".trainable_tokens_delta"),
)


class Entry(NamedTuple):
    """One tensor of a file."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Its data."""
        return prod(self.shape) * self.dtype.itemsize


def file_bytes(entries: Iterable[Entry]) -> int:
    """Bytes of one safetensors file: header and data. Wide types come first, then names in their order."""
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    parts, offset = [_METADATA], 0
    for name, dtype, shape in ordered:
        end = offset + prod(shape) * dtype.itemsize
        dims = ",".join(map(str, shape))
        parts.append(f'"{name}":{{"dtype":"{_NAMES[dtype]}","shape":[{dims}],"data_offsets":[{offset},{end}]}}')
        offset = end
    header = len(("{" + ",".join(parts) + "}").encode())
    return _LENGTH_BYTES + round_up(header, _ALIGNMENT) + offset


def shards(entries: Sequence[Entry], limit_bytes: int) -> list[list[Entry]]:
    """Entries by file: whole tensors in their order, none of them in two files."""
    found: list[list[Entry]] = []
    current: list[Entry] = []
    size = 0
    for entry in entries:
        if entry.num_bytes > limit_bytes:
            found.append([entry])
            continue
        if size + entry.num_bytes > limit_bytes:
            found.append(current)
            current, size = [], 0
        current.append(entry)
        size += entry.num_bytes
    if current:
        found.append(current)
    return [shard for shard in found if shard]


def named_parameters(model: ModelSpec) -> Iterator[tuple[str, Parameter]]:
    """Every distinct weight of the stem once and those of every block, under full names."""
    seen: set[int] = set()
    for name, parameter in model.stem.named_parameters():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield name, parameter
    for run in model.runs:
        inside = [(name, p) for name, p in _distinct(run.block) if id(p) not in seen]
        for index in range(run.first_index, run.first_index + run.count):
            yield from ((f"{run.path}.{index}.{name}", parameter) for name, parameter in inside)


def _distinct(module: Module) -> list[tuple[str, Parameter]]:
    return list({id(p): (name, p) for name, p in reversed(list(module.named_parameters()))}.values())[::-1]


def merged_entries(base: ModelSpec) -> list[Entry]:
    """What save_pretrained writes of a dense model: its weights, shared ones once."""
    return [
        Entry(name, parameter.dtype, parameter.shape)
        for name, parameter in named_parameters(base)
        if parameter.role == "weight"
    ]


def packed_entries(base: ModelSpec) -> list[Entry]:
    """The same of a model that bitsandbytes packed: each weight, its scales and codes, and a line that says how.

    That line holds numbers whose digits are not known: it is taken as long as it is at the most.
    """
    found: list[Entry] = []
    for name, parameter in named_parameters(base):
        if parameter.role == "weight":
            found += _packed(name, parameter) or [Entry(name, parameter.dtype, parameter.shape)]
    return found


def _packed(name: str, weight: Parameter) -> list[Entry]:
    quant = weight.quant
    if not isinstance(quant, QuantFormat):
        return []
    if quant.kind == "int8":
        prefix = name.removesuffix("weight")
        return [
            Entry(name, INT8, weight.shape),
            Entry(f"{prefix}SCB", FP32, weight.shape[:1]),
            Entry(f"{name}_format", UINT8, ()),
        ]
    kept = weight.storages()
    codes = {"code table": "quant_map", "second-level code table": "nested_quant_map"}
    codes |= {"absmax": "absmax", "absmax (8 bit)": "absmax", "second-level absmax": "nested_absmax"}
    found = [Entry(name, UINT8, ((weight.numel + 1) // 2, 1))]
    for label, size in kept:
        if label in codes:
            dtype = UINT8 if label == "absmax (8 bit)" else FP32
            found.append(Entry(f"{name}.{codes[label]}", dtype, (size // dtype.itemsize,)))
    return [*found, Entry(f"{name}.quant_state.bitsandbytes__{quant.kind}", UINT8, (_QUANT_STATE_BYTES,))]


def adapter_file_bytes(model: ModelSpec, tensor_bytes: int) -> int:
    """peft's adapter file, whose tensors take `tensor_bytes`.

    Names are those of what trains, or of all that was added, or of the one tensor that makes up these bytes; where
    none does, the header is that of what trains, a few bytes a tensor off.
    """
    added = [(name, p) for name, p in named_parameters(model) if p.role == "adapter"]
    trained = [one for one in added if one[1].edge is not None]
    alone = [one for one in added if one[1].num_bytes() == tensor_bytes][:1]
    for kept in (trained, added, alone):
        entries = [Entry(renamed(name), p.dtype, p.shape) for name, p in kept]
        if entries and sum(entry.num_bytes for entry in entries) == tensor_bytes:
            return file_bytes(entries)
    entries = [Entry(renamed(name), p.dtype, p.shape) for name, p in trained]
    return file_bytes(entries) - sum(entry.num_bytes for entry in entries) + tensor_bytes


def renamed(name: str) -> str:
    """A name as peft saves it: prompts are one tensor without a module's name."""
    if name == _PROMPTS:
        return "prompt_embeddings"
    for old, new in _RENAMED:
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return _PEFT_PREFIX + name.replace(_SAVED_WHOLE, ".")
