"""What one would change when a run does not fit: options to write, the fields they set, and what is risked.

Risk is what a change may do to the trained model, in four ranks:

* none: the same arithmetic on the same batches, up to the order of sums - checkpointing, fused kernels, smaller
  micro-batches of which more make one step;
* low: fewer bits for what is kept. Published comparisons find next to no difference for 8-bit optimizer states
  and a 4-bit frozen base;
* moderate: fewer or coarser trained weights - adapters instead of all weights, a lower rank, fewer targets,
  weights that are updated in bf16;
* high: other data - shorter sequences.

Source: eight-bit-optimizers, qlora
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from peftplan.methods import METHODS

RISKS = ("none", "low", "moderate", "high")

# Methods that hold less than full fine-tuning, and what a method fills in where a request leaves it open.
LIGHTER_METHODS = ("lora", "qlora")
FILLED_BY_METHOD = (
    *("precision", "base_dtype", "kbit_prepare"),
    *("quant", "quant_bits", "quant_block_size", "quant_options"),
)
# Fields with lighter choices: each choice with its risk.
LIGHTER_CHOICES = {
    "loss": (("fused", "none"), ("chunked", "none")),
    "attention": (("sdpa", "none"),),
    "optimizer": (("adamw-fused", "none"), ("adamw-8bit", "low"), ("paged-adamw-8bit", "low")),
    "adapter_dtype": (("bf16", "low"),),
    "targets": (("attention", "moderate"),),
}
LIGHTER_RECIPES = (("bf16-mixed", "low"), ("bf16", "moderate"))  # of full fine-tuning
TURNED_OFF = {"keep_outputs": "none", "use_reentrant": "none", "padding": "low", "kbit_prepare": "low"}
TURNED_ON = {"checkpointing": "none"}
# Halved as often as there is something left, and the least that is of use.
HALVED = {"rank": ("moderate", 4), "seq_len": ("high", 128)}
# Fields whose changes are rungs: each goes further than the one before it.
LADDERS = ("micro_batch", *HALVED)


class SingleChange(NamedTuple):
    """One change, as it is written on the command line, and the fields of a request that it sets."""

    text: str
    fields: dict[str, Any]
    risk: str = "none"


def single_changes(filled: Mapping[str, Any]) -> Iterator[SingleChange]:
    """Changes of a request whose defaults are filled in, each on its own; of a number, the first half."""
    for field, changes in change_groups(filled).items():
        yield from changes[:1] if field in LADDERS else changes


def change_groups(filled: Mapping[str, Any]) -> dict[str, list[SingleChange]]:
    """By field, the changes of which one at a time can be made; those that should cost less time come first.

    A method comes before the fields that it fills in.
    """
    groups = {
        "method": _methods(filled),
        **{field: [_set(field, False, risk)] for field, risk in TURNED_OFF.items() if filled[field]},
        "precision": list(_formats(filled)),
        **{field: list(_choices(filled, field)) for field in LIGHTER_CHOICES},
        **{field: list(_halves(filled[field], field)) for field in HALVED},
        "micro_batch": list(_smaller_batches(filled)),
        **{field: [_set(field, True, risk)] for field, risk in TURNED_ON.items() if not filled[field]},
    }
    return {field: changes for field, changes in groups.items() if changes}


def _methods(filled: Mapping[str, Any]) -> list[SingleChange]:
    """Other methods that hold less: a packed base risks little, adapters in place of all weights more."""
    risk = "low" if METHODS[filled["method"]].frozen_base else "moderate"
    return [
        SingleChange(f"--method {method}", {"method": method, **dict.fromkeys(FILLED_BY_METHOD)}, risk)
        for method in LIGHTER_METHODS
        if method != filled["method"]
    ]


def _formats(filled: Mapping[str, Any]) -> Iterator[SingleChange]:
    """Weights in fewer bits: of a frozen base in what it is kept, of trained ones in what they are updated."""
    if METHODS[filled["method"]].frozen_base:
        if filled["base_dtype"] == "fp32":
            yield _set("base_dtype", "bf16", "low")
        return
    for precision, risk in LIGHTER_RECIPES:
        if precision != filled["precision"]:
            change = _set("precision", precision, risk)
            yield change._replace(fields={**change.fields, "base_dtype": None})


def _choices(filled: Mapping[str, Any], field: str) -> Iterator[SingleChange]:
    for choice, risk in LIGHTER_CHOICES[field]:
        if choice != filled[field]:
            yield _set(field, choice, risk)


def _halves(value: int, field: str) -> Iterator[SingleChange]:
    risk, least = HALVED[field]
    while value // 2 >= least:
        value //= 2
        yield _set(field, value, risk)


def _smaller_batches(filled: Mapping[str, Any]) -> Iterator[SingleChange]:
    """Micro-batches of half the size or less, of which as many more make a step: its batch stays the same."""
    whole, micro_batches = filled["micro_batch"], filled["grad_accum"]
    size = whole
    while size > 1:
        size = _divisor(whole, size // 2)
        more = micro_batches * (whole // size)
        yield SingleChange(f"--micro-batch {size} --grad-accum {more}", {"micro_batch": size, "grad_accum": more})


def _divisor(whole: int, most: int) -> int:
    """The largest divisor of a number that is not above another."""
    return next(size for size in range(most, 0, -1) if whole % size == 0)


def _set(field: str, value: Any, risk: str) -> SingleChange:
    """One field set to a value, in the command line's words."""
    flag = field.replace("_", "-")
    text = f"--{flag} {value}" if not isinstance(value, bool) else f"--{flag}" if value else f"--no-{flag}"
    return SingleChange(text, {field: value}, risk)


def highest(risks: Iterable[str]) -> str:
    """The highest of some risks."""
    return max(risks, key=RISKS.index, default=RISKS[0])
