"""torch's reentrant checkpoint: a region runs without a graph, and again in backward with one of its own.

The first run makes one node of the whole region. That node's backward detaches the region's inputs, runs it
whole (there is no early stop), runs a backward pass of what came out inside the outer one, and returns the
gradients that its inputs have got. What the node keeps as a plain attribute - everything that the model
passes to a block by keyword - stays until the loss goes; what is passed by position is a saved tensor.

Source: torch 2.13 torch/utils/checkpoint.py (CheckpointFunction), torch/csrc/autograd/python_function.cpp
(outputs that got no gradient are given zeros); transformers 5.23 modeling_layers.py (GradientCheckpointingLayer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from sys import getrefcount
from typing import Any, NamedTuple

from peftplan.errors import BadInput
from peftplan.memory.backward import OWN_TO_A_RECOMPUTATION
from peftplan.memory.graph import Leaf, Node
from peftplan.memory.interface import InterfaceOps
from peftplan.memory.references import ALONE_AS_ATTRIBUTE
from peftplan.specs.formats import DType
from peftplan.specs.modules import Module
from peftplan.specs.tensors import Tensor

Run = Callable[[Any, Tensor], Any]  # (what the block is given, hidden states) -> what it returns
_OWN_TO_A_REGION = (*OWN_TO_A_RECOMPUTATION, "leaves", "handed_back")


class Region(NamedTuple):
    """What a region's node keeps beside its saved tensors."""

    run: Run
    block: Module
    given: Any  # the parts passed by position left empty
    autocast: DType | None
    outputs: list[tuple[tuple[int, ...], DType]]


class ReentrantOps(InterfaceOps):
    """`checkpoint_reentrant`, beside the non-reentrant `checkpoint` of the engine."""

    def checkpoint_reentrant(self, run: Run, block: Module, given: Any, x: Tensor) -> Any:
        """Run a region keeping only its inputs; backward runs it again (torch's reentrant checkpoint)."""
        passed = [given[i] for i in block.positional]
        kept = _with(given, block.positional, [None] * len(passed))
        inputs = (x, *passed)
        edges = tuple(None if tensor is None else tensor.edge for tensor in inputs)
        node = self.link("CheckpointFunctionBackward", _run_again, inputs, edges)
        before, self.handed_back = self.handed_back, []  # the caller holds them until it has this block's
        with self._region():
            out = run(given, x)
        del before
        out, given = out if out.__class__ is tuple else (out, given)
        outputs = [out, *(given[i] for i in block.hands_on)]
        if node is not None:
            _refuse_graphs(kept)
            self.held.extend(_tensors(kept))
            made = [tensor for tensor in outputs + self.handed_back if tensor is not None]
            node.outputs = len(made)
            node.context = Region(run, block, kept, self.autocast, [(m.shape, m.dtype) for m in made])
            numbers = iter(range(len(made)))
            outputs = [None if o is None else _output(o, node, next(numbers)) for o in outputs]
        return (outputs[0], _with(given, block.hands_on, outputs[1:])) if block.hands_on else outputs[0]

    def run_again(self, grads: list[Tensor], inputs: Sequence[Tensor | None], region: Region) -> list[Any]:
        """The node's backward: what its inputs get once the region has run again, forwards and backwards."""
        leaves = [Leaf(x) if x is not None and x.edge is not None else None for x in inputs]
        detached = [x and _detached(x, leaf) for x, leaf in zip(inputs, leaves)]
        with self._again(region):
            given = _with(region.given, region.block.positional, detached[1:])
            assert detached[0] is not None
            out = region.run(given, detached[0])
            out, given = out if out.__class__ is tuple else (out, given)
            outputs = [out, *(given[i] for i in region.block.hands_on), *self.handed_back]
            outputs = [tensor for tensor in outputs if tensor is not None]
            self.autocast, self.autocast_cache = None, {}
            self.kind = "temporary"
            root = Node(_roots, None, [tensor.edge for tensor in outputs], None, "", self.layer, "GraphRoot")
            root.grad = grads
            self.nodes.append(root)
            self.backward()
        return [leaf and self._taken(leaf) for leaf in leaves]

    def _taken(self, leaf: Leaf) -> Tensor | None:
        """The gradient of a detached input, as accumulated: cloned where another holds it too."""
        grad, leaf.grad = leaf.grad, None
        if grad is not None and getrefcount(grad.storage) > ALONE_AS_ATTRIBUTE:
            return self.like(grad, "gradient")
        return grad

    @contextmanager
    def _region(self) -> Iterator[None]:
        """The first run: no graph, and a tensor in it that asks for a gradient gets the node's in its place."""
        leaves, self.leaves, self.entered = self.leaves, [], True
        try:
            with self.no_grad():
                yield
        finally:
            self.leaves, self.entered = leaves, False

    @contextmanager
    def _again(self, region: Region) -> Iterator[None]:
        """With a graph, an autocast cache and marks of its own; then back to the outer backward pass."""
        outer = [getattr(self, name) for name in _OWN_TO_A_REGION]
        self.kind, self.module = "recomputed activation", ""
        self.nodes, self.frame, self.held, self.leaves, self.handed_back = [], None, [], [], []
        self.autocast, self.autocast_cache = region.autocast, {}
        self.entered = self.reentered = self.grad_enabled = True
        try:
            yield
        finally:
            self.entered = self.reentered = self.grad_enabled = False
            for name, value in zip(_OWN_TO_A_REGION, outer):
                setattr(self, name, value)


def _run_again(t: Any, grads: Any, saved: Any, region: Region) -> Sequence[Tensor | None]:
    if len(region.outputs) == 1:
        grads = [grads]
    else:
        made = zip(grads, region.outputs)
        grads = [g if g is not None else t.new(s, prod(s), dtype, "zeros") for g, (s, dtype) in made]
    return t.run_again(grads, saved, region)  # type: ignore[no-any-return]


def _roots(t: Any, grads: list[Tensor], saved: Any, context: Any) -> Sequence[Tensor | None]:
    return list(grads)


def _output(x: Tensor, node: Node, number: int) -> Tensor:
    return Tensor(x.shape, x.numel, x.dtype, x.storage, (node, number, x.dtype, x.numel))


def _detached(x: Tensor, leaf: Leaf | None) -> Tensor:
    edge = None if leaf is None else (leaf, 0, x.dtype, x.numel)
    return Tensor(x.shape, x.numel, x.dtype, x.storage, edge)


def _with(given: Any, places: Sequence[int], tensors: Sequence[Tensor | None]) -> Any:
    """What a block is given, some of its parts replaced."""
    if not places:
        return given
    parts = list(given)
    for place, tensor in zip(places, tensors):
        parts[place] = tensor
    return given._make(parts) if hasattr(given, "_make") else tuple(parts)


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, (tuple, list)):
        for part in given:
            yield from _tensors(part)


def _refuse_graphs(given: Any) -> None:
    """Each region's own backward pass would go through a graph they share, which the first one frees."""
    for tensor in _tensors(given):
        node = tensor.edge[0] if tensor.edge is not None else None
        if node.__class__ is Node and node.saved:
            raise BadInput(
                f"--use-reentrant: every block is given the output of trained weights ({node.module or node.name}) "
                "by keyword, and torch cannot run that graph backward once for each block; use --no-use-reentrant"
            )
