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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from sys import getrefcount
from typing import Any

from peftplan.memory.graph import (
    SHARED,
    WITH_LAST,
    Backward,
    Frame,
    Leaf,
    Node,
    Record,
    Segment,
    StopRecompute,
    Storage,
)
from peftplan.memory.references import ALONE, ALONE_AS_ATTRIBUTE
from peftplan.specs.behaviour import REFERENCE
from peftplan.specs.formats import UINT8, DType
from peftplan.specs.tensors import Edge, Tensor


class Engine:
    """Allocation, saving for backward, checkpointing and the backward pass."""

    compute_capability: tuple[int, int] = (8, 0)  # of the GPU whose kernels run
    behaviour = REFERENCE  # of the libraries that run the step

    def __init__(self, accumulating: bool = False) -> None:
        self.clock = 0
        self.level_bytes = 0
        self.requested_bytes = 0
        self.peak_bytes = 0
        self.peak_clock = 0
        self.records: list[Record] = []
        self.in_place: list[Record] = []  # launches that write what is there already
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
        # a reentrant checkpoint's region is running: for the first time, or for the second
        self.entered = self.reentered = False
        # A second micro-step of gradient accumulation finds the gradients there already.
        self.accumulating = accumulating
        self.grads: dict[tuple[int, int], Tensor] = {}
        # Which block is running: one module stands for all blocks of a run, its weights do not.
        self.layer = -1
        # Weights that stand in several places, how often each is used, and sums not yet complete.
        self.shared: set[int] = set()
        self.uses: dict[tuple[int, int], int] = {}
        self.pending: dict[tuple[int, int], Tensor] = {}
        self.gathers = False  # a weight is given to several blocks
        # Tensors that graph nodes keep as plain attributes: gone when the loss goes.
        self.held: list[Tensor] = []
        # The ids whose embeddings ask for a gradient (enable_input_require_grads), and those embeddings.
        self.leaf_ids: Tensor | None = None
        self.leaves: list[Leaf] = []
        # what becomes of gradients that do not wait for the optimizer step (`passing.Passing`)
        self.passing: Any = None
        self.states: list[Tensor] = []  # of optimizers, made inside backward by the first step
        self.lets_go = False  # notes what ends of what was there before, by clock
        self.gone: list[tuple[int, int]] = []
        # running totals, rounded: gradients of weights, and tensors held by the graph itself
        self.gradient_bytes = 0
        self.held_bytes = 0

    # ---- storages
    def new(
        self,
        shape: tuple[int, ...],
        numel: int,
        dtype: DType,
        op: str,
        read: int | None = None,
        num_flop: int = 0,
    ) -> Tensor:
        """Allocate a tensor and return it; `read` and `num_flop` are those of the launch that writes it."""
        nbytes = numel * dtype.itemsize
        size = (nbytes + 511) & -512
        self.clock = clock = self.clock + 1
        record = Record(nbytes, size, clock, op, self.module, shape, dtype, self.kind, read, num_flop)
        self.records.append(record)
        self.requested_bytes += nbytes
        self.level_bytes = level = self.level_bytes + size
        if level > self.peak_bytes:
            self.peak_bytes, self.peak_clock = level, clock
        return Tensor(shape, numel, dtype, Storage(self, record), None)

    def like(self, x: Tensor, op: str, read: int | None = None) -> Tensor:
        """Allocate a tensor of the shape and type of `x`, made from it and perhaps from more."""
        return self.new(x.shape, x.numel, x.dtype, op, read)

    def further(self, shape: tuple[int, ...], numel: int, dtype: DType, op: str) -> Tensor:
        """Allocate a further result of the operation that has just allocated its first."""
        return self.new(shape, numel, dtype, op, WITH_LAST)

    def write(self, op: str, dtype: DType, read: int, written: int, num_flop: int = 0) -> None:
        """Note a launch that allocates nothing: bytes it reads, and writes into what is there."""
        self.clock = clock = self.clock + 1
        self.in_place.append(Record(written, 0, clock, op, self.module, (), dtype, self.kind, read, num_flop))

    def workspace(self, op: str, *sizes: int) -> None:
        """Buffers that one kernel allocates together and frees before it returns."""
        held = [self.new((n,), n, UINT8, op + " workspace", 0) for n in sizes if n]
        del held

    def let_go(self, num_bytes: int) -> None:
        """What was there before the tape ends (or, below zero, is there again): noted where the tape is told to."""
        if self.lets_go:
            rounded = (abs(num_bytes) + 511) & -512
            self.level_bytes -= rounded if num_bytes > 0 else -rounded
            self.gone.append((self.clock, num_bytes))

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
        """Record an operation for backward if an input wants a gradient; call before allocating the output."""
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
        if self.gathers and self.recording is None:
            for edge in edges:
                if edge is not None and edge[0].__class__ is Node and edge[0].name == SHARED:
                    edge[0].context += 1
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
                        raise StopRecompute
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

    @staticmethod
    def leaf(x: Tensor) -> Tensor:
        """`x` cut from the graph but still asking for a gradient if it did (detach, requires_grad_)."""
        edge = (None, 0, x.dtype, x.numel) if x.edge is not None else None
        return Tensor(x.shape, x.numel, x.dtype, x.storage, edge)

    def ask_gradient(self, x: Tensor) -> None:
        """As `x.requires_grad_()` on a tensor without a history."""
        leaf = Leaf(Tensor(x.shape, x.numel, x.dtype, x.storage, None))
        if self.recording is None:  # run again, what it leaves behind is dropped with its graph
            self.leaves.append(leaf)
        x.edge = (leaf, 0, x.dtype, x.numel)

    @property
    def checkpointing(self) -> bool:
        """Whether what runs is a checkpointed region, for the first time or again."""
        return self.frame is not None or self.recording is not None or self.entered

    @property
    def again(self) -> bool:
        """Whether what runs has run before: what it leaves behind beside its graph is there already."""
        return self.recording is not None or self.reentered

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
            if getrefcount(held) <= ALONE and getrefcount(held.storage) <= ALONE_AS_ATTRIBUTE:
                record = held.storage.record
                size, nbytes = self.cleared.get(key[1], (0, 0))
                self.cleared[key[1]] = (size + record.size, nbytes + record.nbytes)
