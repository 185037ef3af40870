"""Fine-tuning methods: each rewrites a model; which parameters train, how each is kept, what is added.

`METHODS` is the registry: parsing, choices and help follow from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peftplan.methods import full, lora
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Method:
    """One method: its name, a sentence, the rewriting, and the defaults a request takes from it."""

    name: str
    summary: str
    source: str
    apply: Callable[[ModelSpec, MethodSpec], None]
    frozen_base: bool
    default_precision: str
    default_quant: str | None = None


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "full",
            "every weight trains",
            "mixed-precision",
            full.apply,
            frozen_base=False,
            default_precision="bf16",
        ),
        Method(
            "lora",
            "frozen base, low-rank adapters beside the targeted linears",
            "lora",
            lora.apply,
            frozen_base=True,
            default_precision="bf16-mixed",
        ),
        Method(
            "qlora",
            "LoRA over a base stored in 4 bits (NF4, double quantisation)",
            "qlora",
            lora.apply,
            frozen_base=True,
            default_precision="bf16-mixed",
            default_quant="nf4",
        ),
    )
}
