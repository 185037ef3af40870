"""What one would change first when a run does not fit: options to write, and the fields they set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# Methods that hold less than full fine-tuning, and what a method fills in where a request leaves it open.
LIGHTER_METHODS = ("lora", "qlora")
FILLED_BY_METHOD = ("precision", "base_dtype", "quant", "kbit_prepare")
TURNED_OFF = ("use_reentrant", "padding")
HALVED = ("micro_batch", "seq_len", "rank")
LIGHTER_CHOICES = {
    "optimizer": ("adamw-8bit", "paged-adamw-8bit"),
    "loss": ("fused",),
    "attention": ("sdpa",),
}


class SingleChange(NamedTuple):
    """One change, as it is written on the command line, and the fields of a request that it sets."""

    text: str
    fields: dict[str, Any]


def single_changes(filled: Mapping[str, Any]) -> Iterator[SingleChange]:
    """Changes of a request whose defaults are filled in, each on its own."""
    for method in LIGHTER_METHODS:
        if method != filled["method"]:
            fields = {"method": method, **dict.fromkeys(FILLED_BY_METHOD)}
            yield SingleChange(f"--method {method}", fields)
    if not filled["checkpointing"]:
        yield SingleChange("--checkpointing", {"checkpointing": True})
    for field in TURNED_OFF:
        if filled[field]:
            yield SingleChange(f"--no-{field.replace('_', '-')}", {field: False})
    for field in HALVED:
        half = filled[field] // 2
        if half:
            yield SingleChange(f"--{field.replace('_', '-')} {half}", {field: half})
    for field, choices in LIGHTER_CHOICES.items():
        for choice in choices:
            if choice != filled[field]:
                yield SingleChange(f"--{field} {choice}", {field: choice})
