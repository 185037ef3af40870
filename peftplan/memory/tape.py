"""The tape's engine: storages that live and die, a graph of gradients, and its backward pass.

The tape runs the model's forward program on tensors without values. A storage lives as long as
something refers to it - a local variable of the program, a saved tensor of the graph - and CPython's
reference counts decide that here exactly as they do in the real program, so lifetimes need not be
written down a second time. Every allocation and free moves `level_bytes` (rounded as the CUDA
caching allocator rounds), and the highest level between two marks is that segment's peak.

Source: torch 2.13 autograd engine (torch/csrc/autograd/engine.cpp, input_buffer.cpp,
accumulate_grad.h) and torch/utils/checkpoint.py (non-reentrant).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from sys import getrefcount
from typing import Any

from peftplan.specs.formats import UINT8, DType
from peftplan.specs.tensors import Edge, Parameter, Tensor

# A backward formula: (tape, gradient of the output, saved tensors, context) -> input gradients.
Backward = Callable[[Any, Any, Sequence[Any], Any], Sequence[Tensor | None]]


class Record:
    """One allocation: what it was for, its size, and the clock at its birth and death."""

    __slots__ = ("born", "died", "dtype", "kind", "module", "nbytes", "op", "shape", "size")

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
    ) -> None:
        self.nbytes, self.size, self.born, self.died = nbytes, size, born, 0
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

    def __init__(
        self, run: Callable[..., Any], inputs: tuple[Tensor, ...], state: DType | None
    ) -> None:
        self.run, self.inputs, self.state = run, inputs, state
        self.num_saved = 0
        self.recomputed: list[Any] | None = None


class Leaf:
    """A tensor that is no weight and asks for a gradient: both stay until the loss goes."""

    __slots__ = ("grad", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.grad: Tensor | None = None


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


class _StopRecompute(Exception):
    """Raised when a recomputation has produced the last tensor that was saved (early stop)."""


class Engine:
    """Allocation, saving for backward, checkpointing and the backward pass."""

    def __init__(self, accumulating: bool = False) -> None:
        self.clock = 0
        self.level_bytes = 0
        self.requested_bytes = 0
        self.peak_bytes = 0
        self.peak_clock = 0
        self.records: list[Record] = []
        self.segments: list[Segment] = [Segment("start", 0, 0, 0)]
        self.nodes: list[Node | str] = []
        self.grad_enabled = True
        self.training = True
        self.module = ""
        self.kind = "input"  # what a new allocation counts as: input, activation, temporary, ...
        self.autocast: DType | None = None
        self.autocast_cache: dict[tuple[int, int], Tensor] = {}
        # (rounded, requested) bytes of cast weights that died with the cache, by block
        self.cleared: dict[int, tuple[int, int]] = {}
        self.clear_clock = 0
        self.frame: Frame | None = None
        self.recording: list[Any] | None = None
        self.recording_target = 0
        # A second micro-step of gradient accumulation finds the gradients there already.
        self.accumulating = accumulating
        self.grads: dict[tuple[int, int], Tensor] = {}
        # Which block is running: one module stands for all blocks of a run, its weights do not.
        self.layer = -1
        # Weights that stand in several places, how often each is used, and sums not yet complete.
        self.shared: set[int] = set()
        self.uses: dict[tuple[int, int], int] = {}
        self.pending: dict[tuple[int, int], Tensor] = {}
        # Tensors that graph nodes keep as plain attributes: gone when the loss goes.
        self.held: list[Tensor] = []
        # The ids whose embeddings ask for a gradient (enable_input_require_grads), and those embeddings.
        self.leaf_ids: Tensor | None = None
        self.leaves: list[Leaf] = []
        # running totals, rounded: gradients of weights, and tensors held by the graph itself
        self.gradient_bytes = 0
        self.held_bytes = 0

    # ---- storages
    def new(self, shape: tuple[int, ...], numel: int, dtype: DType, op: str) -> Tensor:
        """Allocate a tensor and return it."""
        nbytes = numel * dtype.itemsize
        size = (nbytes + 511) & -512
        self.clock = clock = self.clock + 1
        record = Record(nbytes, size, clock, op, self.module, shape, dtype, self.kind)
        self.records.append(record)
        self.requested_bytes += nbytes
        self.level_bytes = level = self.level_bytes + size
        if level > self.peak_bytes:
            self.peak_bytes, self.peak_clock = level, clock
        return Tensor(shape, numel, dtype, Storage(self, record), None)

    def like(self, x: Tensor, op: str) -> Tensor:
        """Allocate a tensor of the shape and type of `x`."""
        return self.new(x.shape, x.numel, x.dtype, op)

    def workspace(self, op: str, *sizes: int) -> None:
        """Buffers that one kernel allocates together and frees before it returns."""
        held = [self.new((n,), n, UINT8, op + " workspace") for n in sizes if n]
        del held

    def mark(self, name: str) -> None:
        """Close the running segment and open the next."""
        last = self.segments[-1]
        last.peak_bytes, last.peak_clock = self.peak_bytes, self.peak_clock
        last.end_bytes, last.end_requested = self.level_bytes, self.requested_bytes
        last.end_gradient_bytes, last.end_held_bytes = self.gradient_bytes, self.held_bytes
        self.segments.append(Segment(name, self.level_bytes, self.requested_bytes, self.clock))
        self.peak_bytes, self.peak_clock = self.level_bytes, self.clock

    # ---- graph
    def link(
        self,
        name: str,
        fn: Backward,
        saved: tuple[Any, ...],
        edges: tuple[Edge | None, ...],
        context: Any = None,
    ) -> Node | None:
        """Record an operation for backward, if any input wants a gradient. Call before allocating the output."""
        if not self.grad_enabled:
            return None
        for edge in edges:
            if edge is not None:
                break
        else:
            return None
        if self.shared and self.recording is None:
            for edge in edges:
                if edge is not None and id(edge[0]) in self.shared:
                    key = id(edge[0]), self.layer
                    self.uses[key] = self.uses.get(key, 0) + 1
        node = Node(fn, None, edges, context, self.module, self.layer, name)
        self.save(node, saved)
        self.nodes.append(node)
        return node

    def save(self, node: Node, saved: tuple[Any, ...]) -> None:
        """Keep `saved` for the node's backward: themselves, or what a checkpoint needs to redo them."""
        recording = self.recording
        if recording is not None:
            for tensor in saved:
                if tensor is not None:
                    recording.append(tensor)
                    if len(recording) == self.recording_target:
                        raise _StopRecompute
            return
        frame = self.frame
        if frame is None:
            node.saved = saved if node.saved is None else node.saved + saved
            return
        numbers = []
        for tensor in saved:
            if tensor is None:
                numbers.append(-1)
            else:
                numbers.append(frame.num_saved)
                frame.num_saved += 1
        node.saved = tuple(numbers) if node.saved is None else node.saved + tuple(numbers)
        if any(number >= 0 for number in numbers):
            node.frame = frame

    @staticmethod
    def attach(out: Tensor, node: Node | None) -> Tensor:
        """Make `out` the output of `node`."""
        if node is not None:
            out.edge = (node, 0, out.dtype, out.numel)
        return out

    def _unpack(self, node: Node) -> list[Any]:
        frame = node.frame
        assert frame is not None
        if frame.recomputed is None:
            self._recompute(frame)
        recomputed = frame.recomputed
        assert recomputed is not None
        saved = []
        for number in node.saved:
            if number < 0:
                saved.append(None)
            else:
                saved.append(recomputed[number])
                recomputed[number] = None
        return saved

    def _recompute(self, frame: Frame) -> None:
        outer = (
            self.nodes,
            self.frame,
            self.autocast,
            self.autocast_cache,
            self.module,
            self.layer,
            self.held,
            self.kind,
        )
        self.kind, self.module = "recomputed activation", ""
        self.nodes, self.frame, self.held = [], None, []
        self.autocast, self.autocast_cache = frame.state, {}
        self.recording, self.recording_target = [], frame.num_saved
        self.grad_enabled = True
        try:
            frame.run(*[self.leaf(x) for x in frame.inputs])
        except _StopRecompute:
            pass
        finally:
            frame.recomputed = self.recording
            self.recording = None
            self.grad_enabled = False
            (
                self.nodes,
                self.frame,
                self.autocast,
                self.autocast_cache,
                self.module,
                self.layer,
                self.held,
                self.kind,
            ) = outer

    @staticmethod
    def leaf(x: Tensor) -> Tensor:
        """`x` cut from the graph but still asking for a gradient if it did (detach, requires_grad_)."""
        edge = (None, 0, x.dtype, x.numel) if x.edge is not None else None
        return Tensor(x.shape, x.numel, x.dtype, x.storage, edge)

    def ask_gradient(self, x: Tensor) -> None:
        """As `x.requires_grad_()` on a tensor without a history."""
        if self.recording is not None:  # run again: what it leaves behind is dropped with its graph
            x.edge = (None, 0, x.dtype, x.numel)
            return
        leaf = Leaf(Tensor(x.shape, x.numel, x.dtype, x.storage, None))
        self.leaves.append(leaf)
        x.edge = (leaf, 0, x.dtype, x.numel)

    @property
    def checkpointing(self) -> bool:
        """Whether what runs is a checkpointed region, for the first time or again."""
        return self.frame is not None or self.recording is not None

    def checkpoint(self, run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Run a region keeping only its inputs; backward runs it again (torch's non-reentrant checkpoint)."""
        frame = Frame(run, inputs, self.autocast)
        outer, self.frame = self.frame, frame
        try:
            return run(*inputs)
        finally:
            self.frame = outer

    # ---- context managers
    @contextmanager
    def no_grad(self) -> Iterator[None]:
        """As torch.no_grad()."""
        outer, self.grad_enabled = self.grad_enabled, False
        try:
            yield
        finally:
            self.grad_enabled = outer

    @contextmanager
    def autocasting(self, dtype: DType | None) -> Iterator[None]:
        """As torch.autocast(dtype=...): the cache of cast weights goes when the outermost one ends."""
        outer, self.autocast = self.autocast, dtype
        try:
            yield
        finally:
            self.autocast = outer
            if outer is None:
                self._clear_autocast_cache()

    def _clear_autocast_cache(self) -> None:
        """Drop the cast weights; what nothing else keeps dies here, and is noted by block."""
        cache = self.autocast_cache
        self.clear_clock = self.clock
        for key in list(cache):
            held = cache.pop(key)
            # referred to by `held` and the call; its storage by the tensor and the call
            if getrefcount(held) == 2 and getrefcount(held.storage) == 2:
                record = held.storage.record
                size, nbytes = self.cleared.get(key[1], (0, 0))
                self.cleared[key[1]] = (size + record.size, nbytes + record.nbytes)

    # ---- backward
    def backward(self) -> None:
        """Run the recorded graph backwards, freeing saved tensors as the engine does."""
        self.grad_enabled = False
        nodes = self.nodes
        while nodes:
            node = nodes.pop()
            if node.__class__ is str:
                self.mark(node)  # type: ignore[arg-type]
                continue
            if node.grad is not None:  # type: ignore[union-attr]
                self._step(node)  # type: ignore[arg-type]
            del node
        self.grad_enabled = True

    def _step(self, node: Node) -> None:
        grad, node.grad = node.grad, None
        self.module, self.layer = node.module, node.layer
        saved: Any = node.saved if node.frame is None else self._unpack(node)
        results = list(node.fn(self, grad, saved, node.context))
        if node.frame is not None:
            saved = None  # what was recomputed dies with the formula's locals, before gradients are cast
        edges = node.edges
        for i, edge in enumerate(edges):
            if edge is None or results[i] is None:
                results[i] = None
                continue
            if results[i].numel != edge[3]:
                results[i] = self.sum_to(results[i], edge[3])
            if results[i].dtype is not edge[2]:
                results[i] = self.cast(results[i], edge[2])
        # the incoming gradient goes first, then the saved tensors; only then are outputs handed on
        del grad, saved
        node.saved = node.frame = None
        for i, edge in enumerate(edges):
            if results[i] is None or edge is None:
                continue
            grad, results[i] = results[i], None
            target = edge[0]
            if target is None:
                pass
            elif target.__class__ is Parameter:
                self._accumulate(target, grad, node.layer)
            elif target.__class__ is Leaf:
                if getrefcount(grad.storage) > 2:  # shared with another holder: cloned, not taken
                    grad = self.like(grad, "gradient")
                target.grad = grad
            elif target.outputs > 1:
                if target.grad is None:
                    target.grad = [None] * target.outputs
                target.grad[edge[1]] = grad
            elif target.grad is None:
                target.grad = grad
            else:
                held, target.grad = target.grad, None
                target.grad = self._add_grads(held, grad)
                del held
            del grad

    def _add_grads(self, held: Tensor, grad: Tensor) -> Tensor:
        """Sum two gradients that meet: in place where the engine owns the first, else into a new one.

        A linear's gradients are views of what its product made, and the engine does not own a view.
        """
        # this function's argument, the caller's name and the call of getrefcount itself
        if getrefcount(held) <= 3 and getrefcount(held.storage) <= 2 and not _viewed(held):
            return held
        return self.new(held.shape, held.numel, held.dtype, "gradient sum")

    def _accumulate(self, parameter: Parameter, grad: Tensor, node_layer: int) -> None:
        key = id(parameter), node_layer
        if key[0] in self.shared:
            # a shared weight's gradients are summed before its accumulation node runs
            held = self.pending.pop(key, None)
            if held is not None:
                own = getrefcount(held.storage) <= 2 and not _viewed(held)
                grad = held if own else self.like(held, "gradient sum")
                del held
            self.uses[key] -= 1
            if self.uses[key]:
                self.pending[key] = grad
                return
        if self.accumulating:
            return  # added into the gradient that is there; `grad` goes with the caller's reference
        if getrefcount(grad.storage) > 2:  # shared with another holder: cloned, not taken
            grad = self.like(grad, "gradient")
        grad.storage.record.kind = "gradient"
        self.gradient_bytes += grad.storage.record.size
        self.grads[key] = grad

    # ---- provided by the operations
    def sum_to(self, grad: Tensor, numel: int) -> Tensor:
        raise NotImplementedError

    def cast(self, x: Tensor, dtype: DType) -> Tensor:
        raise NotImplementedError


def _viewed(grad: Tensor) -> bool:
    """Whether a gradient is a linear's: its weight's, transposed, or its input's, folded to two dimensions and back."""
    record = grad.storage.record
    return record.op == "mm.t" or (record.op == "mm" and len(record.shape) > 2)
