"""Targets of mixtures of experts whose linears of transformers 4 became parameters in transformers 5.

peft 0.21 rewrites a specification for such a family: a name of a former linear becomes the parameter that
now holds its weight, wherever it stands, and no longer means a linear of that name (shared experts and dense
layers keep theirs, unadapted). Source: peft 0.21 utils/transformers_weight_conversion.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from peftplan.errors import BadInput
from peftplan.methods.lora_parameter import LoraParameter
from peftplan.methods.targets import plain_names, target_pattern
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import BareWeights, Linear
from peftplan.units import MIB

# parameter, by its last name parts -> how many former linears it holds, each with a rank of its own
Parameters = dict[str, int]

# An adapted weight this large is worth a word to the user.
NOTED_BYTES = 64 * MIB


def convert(model: ModelSpec, targets: str | tuple[str, ...]) -> tuple[str | tuple[str, ...], Parameters]:
    """What is left for modules, and the parameters that the specification names."""
    former = model.former_linears
    if not former or not model.behaviour.converts_targets:
        return targets, {}
    names = _names(model, targets)
    if not names:
        return targets, {}
    left, named = [], set()
    for name in names:
        old = next((old for old in former if name == old or name.endswith("." + old)), None)
        if old is None:
            left.append(name)
        else:
            named.add(old)
    parameters = {}
    for new in dict.fromkeys(former.values()):
        parts = [old for old in former if former[old] == new]
        missing = [old for old in parts if old not in named]
        if missing and len(missing) < len(parts):
            raise BadInput(
                f"--targets {shown(targets)}: {model.family} keeps {' and '.join(parts)} of its experts "
                f"in one weight, so peft adapts them together; add {', '.join(missing)}"
            )
        if not missing:
            parameters[new] = len(parts)
    return tuple(left), parameters


def shown(targets: str | tuple[str, ...]) -> str:
    """A specification as the user wrote it."""
    return targets if isinstance(targets, str) else ",".join(targets)


def wrap_parameters(model: ModelSpec, parameters: Parameters, method: MethodSpec) -> None:
    """Put peft's wrapper around the owner of every parameter named, in the order of definition."""
    largest = 0
    for group, _, prefix in model.groups():
        for path, module in list(group.walk()):
            if not isinstance(module, BareWeights) or _saved_whole(path, method):
                continue
            for name, parameter in module.parameters.items():
                full = f"{prefix}.{path}.{name}"
                held = [n for suffix, n in parameters.items() if full.endswith("." + suffix)]
                if held and parameter.quant is not None:
                    raise BadInput(
                        f"--targets {shown(method.targets)} with --quant {parameter.quant.kind}: peft adds what it "
                        f"adapts {name} by to the packed numbers, without their scales; give --targets attention"
                    )
                if held:
                    base = group.child(path)
                    rank = method.rank * held[0]
                    group.replace(path, LoraParameter(base, name, rank, method.adapter_dtype))
                    largest = max(largest, parameter.num_bytes())
    if largest and method.dropout:
        raise BadInput(
            f"--dropout {method.dropout} with --targets {shown(method.targets)}: {model.family} keeps its "
            "router and experts as parameters, and peft adapts those without dropout only; give "
            "--dropout 0, or --targets attention"
        )
    if largest > NOTED_BYTES:
        model.notes.append(
            "peft computes every adapted expert weight whole on each pass, up to "
            f"{largest:,} bytes for one of them: --targets attention avoids it"
        )


def _saved_whole(path: str, method: MethodSpec) -> bool:
    return any(part in method.modules_to_save for part in path.split("."))


def _names(model: ModelSpec, targets: str | tuple[str, ...]) -> Iterable[str]:
    """The module names that a specification stands for, resolved before they are converted."""
    if not isinstance(targets, str):
        return targets
    if targets.strip().lower() == "all-linear":
        linears = [
            path.rpartition(".")[2]
            for group, _, _ in model.groups()
            for path, module in group.walk()
            if isinstance(module, Linear) and module is not model.head
        ]
        return dict.fromkeys([*linears, *model.former_linears])
    names = plain_names(model, targets)
    return names if names is not None else _matching_names(model, target_pattern(targets))


def _matching_names(model: ModelSpec, pattern: re.Pattern[str]) -> list[str]:
    """Last parts of whatever a pattern matches, former linears of the experts included."""
    matched: dict[str, None] = {}
    for full in _every_name(model):
        container, _, last = full.rpartition(".")
        if pattern.fullmatch(full):
            matched[last] = None
        for old, new in model.former_linears.items():
            if new == last and pattern.fullmatch(f"{container}.{old}"):
                matched[old] = None
    return list(matched)


def _every_name(model: ModelSpec) -> Iterable[str]:
    """Dotted names of all modules and parameters, every layer's."""
    for path, module in model.stem.walk():
        yield from (path, *(f"{path}.{name}" for name in module.parameters))
    for run in model.runs:
        inside = [(path, list(module.parameters)) for path, module in run.block.walk() if path]
        for index in range(run.first_index, run.first_index + run.count):
            for path, parameters in inside:
                full = f"{run.path}.{index}.{path}"
                yield from (full, *(f"{full}.{name}" for name in parameters))
