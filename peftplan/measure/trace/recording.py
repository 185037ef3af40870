"""What a traced run leaves behind: every storage, when it came and went, and what it was for. No torch here.

A storage's number is its index. Events come in order: `n + 1` for the birth of storage `n`, `-(n + 1)` for
its end. Texts, shapes and places are interned, so that a recording of a large model stays small.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# Categories of storages. What is none of the standing state is told apart by the phase it was made in.
PARAMETER, BUFFER, ADAPTER, MASTER = "parameter", "buffer", "adapter", "master weight"
GRADIENT, OPTIMIZER_STATE, INPUT = "gradient", "optimizer state", "input"
ACTIVATION, RECOMPUTED, TEMPORARY = "activation", "recomputed activation", "temporary"
BUCKET = "gradient bucket"  # what several GPUs sum gradients in
WORKSPACE = "workspace"  # cuBLAS workspaces, which stay
KERNEL = "kernel workspace"  # buffers that a kernel takes and gives back
RESIDENT = (PARAMETER, BUFFER, ADAPTER, MASTER, OPTIMIZER_STATE, BUCKET)

# Phases, in the order of a step; `load` comes before the first one.
LOAD, FORWARD, LOSS, BACKWARD, STEP = "loaded", "forward", "loss", "backward", "optimizer_step"


@dataclass(slots=True)
class Mark:
    """A moment: how many events came before it. `forward end` and the begin of each phase of each step."""

    name: str
    step: int
    event: int


@dataclass(slots=True)
class Recording:
    """The storages of a traced run, column by column, and its events."""

    sizes: list[int] = field(default_factory=list)  # requested bytes
    categories: list[int] = field(default_factory=list)  # into `texts`, as all of the following
    operations: list[int] = field(default_factory=list)
    modules: list[int] = field(default_factory=list)
    dtypes: list[int] = field(default_factory=list)
    shapes: list[int] = field(default_factory=list)  # into `all_shapes`
    texts: list[str] = field(default_factory=list)
    all_shapes: list[tuple[int, ...]] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # parameter counts, seconds, libraries, notes

    def text(self, column: Sequence[int], number: int) -> str:
        """The text of a storage in a column: `text(recording.modules, 7)`."""
        return self.texts[column[number]]

    def mark(self, name: str, step: int | None = None) -> Mark:
        """The last moment of this name, or that of a given step."""
        for mark in reversed(self.marks):
            if mark.name == name and step in (None, mark.step):
                return mark
        raise KeyError(name)

    def last_step(self) -> int:
        """The number of the last step, from 0."""
        return max(mark.step for mark in self.marks)

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Recording:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        fields["marks"] = [Mark(**mark) for mark in fields["marks"]]
        fields["all_shapes"] = [tuple(shape) for shape in fields["all_shapes"]]
        return cls(**fields)

    def alive(self, event: int) -> Iterator[int]:
        """Numbers of the storages alive after the first `event` events, oldest first."""
        living: dict[int, None] = {}
        for code in self.events[:event]:
            if code > 0:
                living[code - 1] = None
            else:
                del living[-code - 1]
        return iter(living)
