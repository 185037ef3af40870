"""Full fine-tuning: every weight of the model trains."""

from __future__ import annotations

from peftplan.methods.base import set_base_dtype
from peftplan.methods.method import Method
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Keep the weights in the base format, all trainable."""
    set_base_dtype(model, method.base_dtype, trainable=True)


METHODS = (
    Method(
        "full",
        "every weight trains",
        "mixed-precision",
        apply,
        frozen_base=False,
        default_precision="bf16",
        takes=(),
        merging="nothing to merge",
        merges=False,
        inference="none",
    ),
)
