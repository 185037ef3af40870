"""Which modules a target specification names, resolved as peft 0.21 resolves it.

Source: peft 0.21 tuners/tuners_utils.py, check_target_module_exists and _maybe_include_all_linear_layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy

from peftplan.errors import BadInput
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, Linear, Module

Matches = Callable[[str, Module], bool]
_PLAIN_NAMES = re.compile(r"[\w.\-]+(\s*,\s*[\w.\-]+)*\s*,?\s*")


def matcher(model: ModelSpec, targets: str | tuple[str, ...]) -> tuple[Matches, bool]:
    """A test of (full module name, module), and whether it may differ from block to block."""
    if isinstance(targets, str):
        word = targets.strip().lower()
        if word == "all-linear":
            head: Module | None = model.head
            if not model.behaviour.spares_nested_head and any("." in n for n, m in model.stem.walk() if m is head):
                head = None
            excluded = model.not_all_linear
            return (lambda name, m: isinstance(m, Linear) and m is not head and not _ends(name, excluded)), False
        names = plain_names(model, targets)
        if names is None:
            pattern = target_pattern(targets)
            return lambda name, m: pattern.fullmatch(name) is not None, True
        if word in ("attention", "mlp"):
            return _by_suffix(names), False
        targets = names
    if not targets:
        raise BadInput("--targets is empty; give module names, all-linear, attention or mlp")
    return _by_suffix(targets), any(ch.isdigit() for name in targets for ch in name)


def plain_names(model: ModelSpec, targets: str) -> tuple[str, ...] | None:
    """The names that a specification other than all-linear lists; None where it is a pattern."""
    word = targets.strip().lower()
    if word == "attention":
        return model.attention_targets
    if word == "mlp":
        return model.mlp_targets
    return listed_names(targets)


def listed_names(targets: str) -> tuple[str, ...] | None:
    """Module names with commas between them; None where it is a pattern."""
    if _PLAIN_NAMES.fullmatch(targets):
        return tuple(part.strip() for part in targets.split(",") if part.strip())
    return None


def target_pattern(targets: str) -> re.Pattern[str]:
    """A specification as a regular expression of full module names."""
    try:
        return re.compile(targets)
    except re.error as error:
        raise BadInput(
            f"--targets {targets!r} is no valid regular expression ({error}); "
            "give module names with commas, all-linear, attention, mlp, or a regex"
        ) from None


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    return any(name == s or name.endswith("." + s) for s in suffixes)


def _by_suffix(suffixes: tuple[str, ...]) -> Matches:
    return lambda name, module: _ends(name, suffixes)


def split_runs(model: ModelSpec, test: Matches, per_layer: bool) -> None:
    """Part runs of blocks whose layers a specification treats differently, so that each run is alike."""
    if not per_layer:
        return
    parted: list[tuple[BlockRun, tuple[bool, ...]]] = []
    for run in model.runs:
        if not run.count:
            parted.append((run, ()))
            continue
        modules = list(run.block.walk())
        start, previous = 0, None
        for offset in range(run.count):
            prefix = f"{run.path}.{run.first_index + offset}"
            found = tuple(bool(n) and test(f"{prefix}.{n}", m) for n, m in modules)
            if previous is not None and found != previous:
                parted.append((_part(run, start, offset), previous))
                start = offset
            previous = found
        assert previous is not None
        parted.append((_part(run, start, run.count), previous))
    # from here on blocks that are treated differently need modules of their own
    own: dict[tuple[int, tuple[bool, ...]], Module] = {}
    taken: set[int] = set()
    for part, found in parted:
        key = (id(part.block), found)
        if key not in own:
            own[key] = deepcopy(part.block) if id(part.block) in taken else part.block
            taken.add(id(part.block))
        part.block = own[key]
    model.runs = [part for part, _ in parted]


def _part(run: BlockRun, start: int, stop: int) -> BlockRun:
    """The run's blocks from `start` up to `stop`; what stands before the run stands before its first part."""
    before = run.before if start == 0 else None
    return BlockRun(run.block, stop - start, run.first_index + start, run.path, run.apart, before)


def matched(
    model: ModelSpec,
    targets: str | tuple[str, ...],
    required: bool = True,
    written: str | tuple[str, ...] | None = None,
) -> list[tuple[Module, str, Module]]:
    """(owner, path below it, module) of every module that the specification names.

    None is an error if one is `required`; `written` is what the user wrote, where `targets` was made from it.
    """
    if not targets and not required:
        return []
    test, per_layer = matcher(model, targets)
    split_runs(model, test, per_layer)
    found = []
    for owner, _, prefix in model.groups():
        for name, module in list(owner.walk()):
            if name and test(f"{prefix}.{name}" if prefix else name, module):
                found.append((owner, name, module))
    written = written or targets
    shown = written if isinstance(written, str) else ",".join(written)
    if not found and required:
        raise BadInput(
            f"--targets {shown} names no module of {model.family}; its linears are {', '.join(linear_names(model))}"
        )
    for _, name, module in found:
        if not isinstance(module, (Linear, Embedding)):
            raise BadInput(
                f"--targets {shown} names {name}, which is no linear or embedding; the linears of "
                f"{model.family} are {', '.join(linear_names(model))}"
            )
    return found


def linear_names(model: ModelSpec) -> list[str]:
    """Last name parts of the model's linears: those of the blocks first, the head last."""
    names: dict[str, None] = {}
    stem, *blocks = model.groups()
    for owner, _, _ in (*blocks, stem):
        for name, module in owner.walk():
            if isinstance(module, Linear):
                names[name.rpartition(".")[2]] = None
    return list(names)
