"""Parts of the model that train as they are, without a layer beside them: biases (BitFit), or modules by name.

peft has neither; a trace asks for the gradients of these weights and of no other. Source: bitfit, mixed-precision
"""

from __future__ import annotations

import re

from peftplan.errors import BadInput
from peftplan.methods.base import set_base_dtype
from peftplan.methods.method import Method
from peftplan.methods.targets import linear_names, plain_names, target_pattern
from peftplan.methods.wrapping import refuse_packed
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec

_BIASES = r"(.*\.)?bias"


def biases(model: ModelSpec, method: MethodSpec) -> str:
    """The names of all biases."""
    return _BIASES


def modules(model: ModelSpec, method: MethodSpec) -> str:
    """The names of all weights below the targeted modules."""
    asked = method.targets
    if isinstance(asked, str):
        if asked.strip().lower() == "all-linear":
            head = model.head_path.rpartition(".")[2]
            asked = tuple(name for name in linear_names(model) if name != head)
        else:
            asked = plain_names(model, asked) or asked
    if isinstance(asked, str):
        return rf"(?:{target_pattern(asked).pattern})(\..*)?"
    return rf"(.*\.)?({'|'.join(map(re.escape, asked))})(\..*)?"


def _train(model: ModelSpec, method: MethodSpec, pattern: str, remedy: str) -> None:
    set_base_dtype(model, method.base_dtype, trainable=False)
    chosen = re.compile(pattern)
    for run in model.runs:
        matches = {
            _matched(run.block.named_parameters(f"{run.path}.{run.first_index + i}"), chosen)
            for i in range(run.count)
        }
        if len(matches) > 1:
            raise BadInput(
                f"--targets {pattern} trains some blocks and not others, which the closed form does not take; "
                "give names of modules, or take --engine trace"
            )
    found = 0
    for owner, _, prefix in model.groups():
        for name, parameter in owner.named_parameters(prefix):
            if parameter.role == "weight" and chosen.fullmatch(name):
                parameter.set_trainable(True)
                found += 1
    if not found:
        raise BadInput(remedy)


def _matched(named: object, chosen: re.Pattern[str]) -> tuple[bool, ...]:
    return tuple(chosen.fullmatch(name) is not None for name, _ in named)  # type: ignore[attr-defined]


def apply_bitfit(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze everything but biases."""
    refuse_packed(method, "bitfit")
    _train(
        model,
        method,
        _BIASES,
        f"--method bitfit trains biases, and {model.family} has none with this config; take --method ln-tuning",
    )


def apply_partial(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze everything but the targeted modules."""
    shown = method.targets if isinstance(method.targets, str) else ",".join(method.targets)
    linears = ", ".join(linear_names(model))
    _train(
        model,
        method,
        modules(model, method),
        f"--targets {shown} names no module of {model.family}; its linears are {linears}",
    )


METHODS = (
    Method(
        "bitfit",
        "the biases train, nothing is added",
        "bitfit",
        apply_bitfit,
        trained=biases,
        takes=(),
        merging="nothing to merge",
        merges=False,
        inference="none",
    ),
    Method(
        "partial",
        "full fine-tuning of the modules that --targets names; the rest is frozen",
        "mixed-precision",
        apply_partial,
        frozen_base=False,
        default_precision="bf16",
        trained=modules,
        takes=("targets",),
        merging="nothing to merge",
        merges=False,
        inference="none",
    ),
)
