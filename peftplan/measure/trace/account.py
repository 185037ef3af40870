"""A recording in the closed form's terms: moments, resident state, and a breakdown that sums to the peak.

The same words in the same order as `memory/account.py`, so that the two can be laid side by side.
"""

from __future__ import annotations

from collections import Counter

from peftplan.breakdown import Node, branch, leaf
from peftplan.measure.trace.recording import (
    ACTIVATION,
    ADAPTER,
    BUCKET,
    BUFFER,
    FORWARD,
    GRADIENT,
    INPUT,
    KERNEL,
    LOAD,
    MASTER,
    OPTIMIZER_STATE,
    PARAMETER,
    RECOMPUTED,
    STEP,
    TEMPORARY,
    WORKSPACE,
    Recording,
)
from peftplan.measure.trace.replay import FORWARD_END, PHASES, Replay
from peftplan.memory.account import AliveKinds, Kind
from peftplan.specs.formats import BLOCK_BYTES, allocated_bytes

UPDATE = "update"  # the optimizer begins to update, after gradients were clipped
_STATE = (PARAMETER, BUFFER, ADAPTER, MASTER, OPTIMIZER_STATE, BUCKET, GRADIENT)
_NODES = {
    PARAMETER: "weights",
    BUFFER: "weights",
    ADAPTER: "adapters",
    MASTER: "master weights",
    OPTIMIZER_STATE: "optimizer states",
    BUCKET: "gradient buckets",
    GRADIENT: "gradients",
    INPUT: "inputs",
    ACTIVATION: "activations",
    RECOMPUTED: "recomputed activations",
    TEMPORARY: "temporaries",
    KERNEL: "kernel workspaces",
    WORKSPACE: "cuBLAS workspaces",
}
_CLIPPING, _UPDATING = "gradient clipping", "optimizer step temporaries"
_ORDER = tuple(dict.fromkeys([*list(_NODES.values())[:-1], _CLIPPING, _UPDATING, _NODES[WORKSPACE]]))
_LARGEST_SHOWN = 12
_ROUNDING = "allocator rounding"


def moments(recording: Recording, replayed: Replay) -> dict[str, int]:
    """Allocated bytes by moment, in the last step; `loaded` is what stands before the first one."""
    levels = replayed.levels
    found = {"loaded": levels[recording.mark(LOAD).event]}
    for name in PHASES:
        found[name] = _phase_peak(recording, replayed, name)[0]
        if name == FORWARD:
            found["forward_end"] = levels[recording.mark(FORWARD_END).event]
    return found


def peak_event(recording: Recording, replayed: Replay) -> tuple[str, int]:
    """The moment of the last step where the most is allocated, and the event after which it is."""
    peaks = {name: _phase_peak(recording, replayed, name) for name in PHASES}
    name = max(PHASES, key=lambda name: peaks[name][0])
    return name, peaks[name][1]


def _phase_peak(recording: Recording, replayed: Replay, name: str) -> tuple[int, int]:
    """(bytes, event) of the most in a phase of the last step, whichever micro-batch it is of.

    A model without such a phase stands as it does at the end of forward.
    """
    last = recording.last_step()
    peaks = [phase.peak for phase in replayed.phases if (phase.name, phase.step) == (name, last)]
    if not peaks:
        event = recording.mark(FORWARD_END).event
        return replayed.levels[event], event
    best = max(peaks, key=lambda peak: peak.num_bytes)
    return best.num_bytes, best.event


def resident(recording: Recording) -> dict[str, int]:
    """Requested bytes of the state that lives from step to step; gradients as the optimizer step finds them."""
    alive = _by_category(recording, recording.mark(STEP).event)
    return {
        "weights": alive[PARAMETER] + alive[BUFFER],
        "adapters": alive[ADAPTER],
        "gradients": alive[GRADIENT],
        "master_weights": alive[MASTER],
        "optimizer_states": alive[OPTIMIZER_STATE],
    }


def activations_bytes(recording: Recording) -> int:
    """Requested bytes alive at the end of forward beyond resident state, inputs and workspaces.

    Gradients of an earlier micro-batch are such state; those that a loss makes on the way forward are not.
    """
    end = recording.mark(FORWARD_END).event
    earlier = set(recording.alive(recording.mark(FORWARD).event))
    total = 0
    for number in recording.alive(end):
        category = recording.text(recording.categories, number)
        if category not in (*_STATE, INPUT, WORKSPACE) or (category == GRADIENT and number not in earlier):
            total += recording.sizes[number]
    return total


def _by_category(recording: Recording, event: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for number in recording.alive(event):
        found[recording.text(recording.categories, number)] += recording.sizes[number]
    return found


# ---- the breakdown


def breakdown(recording: Recording, moment: str, event: int) -> Node:
    """What is alive after `event` events, part by part; its bytes are what is allocated there."""
    rounding = sum(allocated_bytes(recording.sizes[n]) - recording.sizes[n] for n in recording.alive(event))
    nodes = [_group(name, items) for name, items in peak_tensors(recording, moment, event).items()]
    nodes.append(leaf(_ROUNDING, rounding, f"every tensor rounded up to {BLOCK_BYTES} bytes", "torch-allocator"))
    return branch("peak allocated", nodes)


def peak_tensors(recording: Recording, moment: str, event: int) -> AliveKinds:
    """What is alive after `event` events, by part of the breakdown, in its order."""
    groups: AliveKinds = {}
    updating = _update_event(recording)
    born = _births(recording, recording.mark(STEP).event, event) if moment == STEP else set()
    after_forward = _births(recording, recording.mark(FORWARD_END).event, event)
    for number in recording.alive(event):
        category = recording.text(recording.categories, number)
        name = _NODES.get(category, category)
        if number in born and category in (TEMPORARY, GRADIENT):
            name = _UPDATING if event > updating else _CLIPPING
        elif number in after_forward and category == ACTIVATION:  # the loss's own gradient
            name = _NODES[TEMPORARY]
        kind = (
            place(recording.text(recording.modules, number)),
            recording.text(recording.operations, number),
            recording.text(recording.dtypes, number),
            recording.all_shapes[recording.shapes[number]],
        )
        item = groups.setdefault(name, {}).setdefault(kind, [0, 0])
        item[0] += 1
        item[1] += recording.sizes[number]
    known = [name for name in _ORDER if name in groups]
    return {name: groups[name] for name in (*known, *(name for name in groups if name not in _ORDER))}


def place(module: str) -> str:
    """A module's path with `*` for its numbers: blocks alike have one place."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))


def _update_event(recording: Recording) -> int:
    try:
        return recording.mark(UPDATE).event
    except KeyError:
        return recording.mark(STEP).event


def _births(recording: Recording, begin: int, end: int) -> set[int]:
    """Storages made from one event to another."""
    return {code - 1 for code in recording.events[begin:end] if code > 0}


def _group(name: str, items: dict[Kind, list[int]]) -> Node:
    ranked = sorted(items.items(), key=lambda item: (-item[1][1], item[0]))
    shown = [
        leaf(_label(where, operation), size, f"{count} x {dtype}[{', '.join(map(str, shape))}]")
        for (where, operation, dtype, shape), (count, size) in ranked[:_LARGEST_SHOWN]
    ]
    rest = sum(size for _, (_, size) in ranked[_LARGEST_SHOWN:])
    if rest:
        shown.append(leaf(f"{len(ranked) - _LARGEST_SHOWN} smaller kinds", rest))
    return branch(name, shown)


def _label(where: str, operation: str) -> str:
    if not where:
        return operation or "outside the modules"
    return f"{where}: {operation}" if operation and operation != "load" else where
