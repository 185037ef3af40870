"""How each leaf of the breakdown comes about: a formula with its numbers put in, and its source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from peftplan.breakdown import Node
from peftplan.methods import METHODS
from peftplan.methods.quantizers import QUANTIZERS
from peftplan.optimizers import OPTIMIZERS
from peftplan.report import Report
from peftplan.specs.formats import FLOAT_DTYPES

# What a part of the peak mirrors, where its leaves do not say it themselves.
PART_SOURCES = {
    "weights": "transformers-models",
    "adapters": "peft-lora",
    "gradients": "torch-autograd",
    "master weights": "mixed-precision",
    "inputs": "transformers-models",
    "activations": "torch-derivatives",
    "recomputed activations": "torch-checkpoint",
    "temporaries": "torch-derivatives",
    "cuBLAS workspaces": "cublas-workspace",
    "allocator rounding": "torch-allocator",
}

# Bytes of one element of what bitsandbytes keeps for a linear, and what that element is.
_QUANT_PARTS = {
    "absmax (8 bit)": (1, "blocks of {block} weights, one 8-bit scale each: {n} x 1 B"),
    "absmax": (4, "blocks of {block} weights, one fp32 scale each: {n} x 4 B"),
    "code table": (64, "one table of 16 fp32 values for each linear: {n} x 64 B"),
    "absmax offset": (4, "one fp32 mean of the scales for each linear: {n} x 4 B"),
    "second-level absmax": (4, "256 scales share one fp32 scale: {n} x 4 B"),
    "second-level code table": (1024, "one table of 256 fp32 values for each linear: {n} x 1024 B"),
    "int8 weight": (1, "one byte a weight: {n} x 1 B"),
    "row scales": (4, "one fp32 scale for each output row: {n} x 4 B"),
}
_ITEM_BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
_BY_TRAINED = ("gradients", "master weights", "optimizer states", "optimizer step temporaries")
_TENSORS = re.compile(r"(\d+) x (\w+)\[([\d, ]*)\]")


class Derivation(NamedTuple):
    """A formula with its numbers, and the key of its source (empty where it is a plain sum)."""

    formula: str
    source: str


def derive(part: str, leaf: Node, report: Report) -> Derivation:
    """How a leaf of the part of the peak called `part` comes about."""
    request = report.request
    source = leaf.source or _source(part, leaf.name, request)
    given = _TENSORS.fullmatch(leaf.formula)
    if given is not None:
        return Derivation(_tensors(*given.groups()), source)
    kind, _, storage = leaf.name.rpartition(": ")
    if part in _BY_TRAINED:
        trained = report.method.num_trainable_params
        text = OPTIMIZERS[request["optimizer"]].summary if part.startswith("optimizer") else leaf.formula
        each = f"{leaf.bytes / trained:.4g} B for each of {trained:,} trained parameters" if trained else ""
        return Derivation("; ".join(filter(None, (text, each))), source)
    packed = QUANTIZERS.get(kind.removesuffix(" linears"))
    if packed is not None and storage in packed.explains:
        text = packed.explains[storage].format(bits=request["quant_bits"], block=request["quant_block_size"])
        return Derivation(text, source)
    if storage in _QUANT_PARTS:
        size, text = _QUANT_PARTS[storage]
        number = f"{leaf.bytes // size:,}"
        return Derivation(text.format(n=number, block=request["quant_block_size"]), source)
    if storage == "packed weight":
        return Derivation(f"two weights in a byte: {2 * leaf.bytes:,} / 2", source)
    dtype = FLOAT_DTYPES.get(storage)
    if dtype is not None and kind:
        return Derivation(f"{leaf.bytes // dtype.itemsize:,} elements x {dtype.itemsize} B", source)
    return Derivation(leaf.formula or "the sum of what is alive", source)


def _tensors(count: str, dtype: str, shape: str) -> str:
    """`79 x float32[1, 2048, 8192]` as a product: `79 x (1 x 2048 x 8192) x 4 B`."""
    elements = " x ".join(shape.split(", ")) if shape else "1"
    size = _ITEM_BYTES.get(dtype)
    return f"{count} x ({elements}) x {size} B ({dtype})" if size else f"{count} x {dtype}[{shape}]"


def _source(part: str, name: str, request: Mapping[str, Any]) -> str:
    if part in ("optimizer states", "optimizer step temporaries"):
        return OPTIMIZERS[request["optimizer"]].source
    if part == "weights" and "linears: " in name:
        return QUANTIZERS[name.partition(" ")[0]].source
    if part == "adapters":
        return METHODS[request["method"]].source
    return PART_SOURCES.get(part, "")
