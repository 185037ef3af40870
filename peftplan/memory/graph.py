"""What the tape is made of: allocations, graph nodes, checkpointed regions, stretches of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from peftplan.specs.formats import DType
from peftplan.specs.tensors import Edge, Tensor

if TYPE_CHECKING:
    from peftplan.memory.tape import Engine

# A backward formula: (tape, gradient of the output, saved tensors, context) -> input gradients.
Backward = Callable[[Any, Any, Sequence[Any], Any], Sequence[Tensor | None]]


# What a gradient counts as that is used, or leaves the device, while backward still runs.
PASSING = "passing gradient"

# In the place of what is read: a further result of an operation, written by the launch that made the first;
# and a tensor that launches write which are noted by themselves.
WITH_LAST, APART = -1, -2


# A node that gathers what several blocks have of one weight's gradient; its context counts what is yet to come.
SHARED = "AccumulateGrad"


class Record:
    """One allocation: what it was for, its size, and the clock at its birth and death.

    It stands for the launch that writes it: `num_flop` (a multiply-add is two; of products only), and the
    bytes that are read for it, None for as many as are written (or `WITH_LAST` or `APART`).
    """

    __slots__ = ("born", "died", "dtype", "kind", "module", "nbytes", "num_flop", "op", "read", "shape", "size")

    def __init__(
        self,
        nbytes: int,
        size: int,
        born: int,
        op: str,
        module: str,
        shape: tuple[int, ...],
        dtype: DType,
        kind: str,
        read: int | None = None,
        num_flop: int = 0,
    ) -> None:
        self.nbytes, self.size, self.born, self.died = nbytes, size, born, 0
        self.read, self.num_flop = read, num_flop
        self.op, self.module, self.shape, self.dtype, self.kind = op, module, shape, dtype, kind


class Storage:
    """Bytes on the device; freed when the last tensor that refers to them goes."""

    __slots__ = ("record", "tape")

    def __init__(self, tape: Engine, record: Record) -> None:
        self.tape, self.record = tape, record

    def __del__(self) -> None:
        tape, record = self.tape, self.record
        tape.clock += 1
        record.died = tape.clock
        tape.level_bytes -= record.size
        tape.requested_bytes -= record.nbytes


class Node:
    """An operation in the graph: its backward formula, saved tensors and where gradients go."""

    __slots__ = ("context", "edges", "fn", "frame", "grad", "layer", "module", "name", "outputs", "saved")

    def __init__(
        self,
        fn: Backward,
        saved: Any,
        edges: Sequence[Edge | None],
        context: Any,
        module: str,
        layer: int,
        name: str,
    ) -> None:
        self.fn, self.saved, self.edges, self.context = fn, saved, edges, context
        self.module, self.name, self.layer = module, name, layer
        self.grad: Any = None
        self.frame: Frame | None = None
        self.outputs = 1


class Frame:
    """A checkpointed region: how to run it again, and what it then has to hand out."""

    __slots__ = ("inputs", "num_saved", "recomputed", "run", "state")

    def __init__(self, run: Callable[..., Any], inputs: tuple[Tensor, ...], state: DType | None) -> None:
        self.run, self.inputs, self.state = run, inputs, state
        self.num_saved = 0
        self.recomputed: list[Any] | None = None


class Leaf:
    """A tensor that is no weight and asks for a gradient: both stay until the loss goes."""

    __slots__ = ("grad", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.grad: Tensor | None = None


class GradientView(Tensor):
    """A gradient that is another one in another shape: the engine owns no view, and adds nothing to it in place."""

    __slots__ = ()


class Strided(GradientView):
    """One that lies otherwise than what it is the gradient of: a weight takes a copy."""

    __slots__ = ()


class Segment:
    """A stretch of the step between two marks: its peak level, and the level it ended at."""

    __slots__ = (
        "end_bytes",
        "end_gradient_bytes",
        "end_held_bytes",
        "end_requested",
        "name",
        "peak_bytes",
        "peak_clock",
        "start_bytes",
        "start_clock",
        "start_requested",
    )

    def __init__(self, name: str, start_bytes: int, start_requested: int, start_clock: int) -> None:
        self.name, self.start_bytes, self.start_clock = name, start_bytes, start_clock
        self.start_requested = self.end_requested = start_requested
        self.end_gradient_bytes = self.end_held_bytes = 0
        self.peak_bytes, self.peak_clock, self.end_bytes = start_bytes, start_clock, start_bytes


class StopRecompute(Exception):
    """Raised when a recomputation has produced the last tensor that was saved (early stop)."""
