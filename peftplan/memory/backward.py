"""The backward pass: nodes in reverse order, recomputation of checkpoints, and where gradients meet.

Source: torch 2.13 autograd engine (torch/csrc/autograd/engine.cpp, input_buffer.cpp,
accumulate_grad.h) and torch/utils/checkpoint.py (non-reentrant).
"""

from __future__ import annotations

from sys import getrefcount
from typing import Any

from peftplan.memory.graph import PASSING, SHARED, Frame, GradientView, Leaf, Node, StopRecompute, Strided
from peftplan.memory.references import ALONE_AS_ARGUMENT, ALONE_AS_ATTRIBUTE
from peftplan.memory.tape import Engine
from peftplan.memory.workspaces.reductions import SHARED_FROM, sum_rows_sizes
from peftplan.specs.formats import DType
from peftplan.specs.tensors import Parameter, Tensor, bytes_of

# What a recomputation has of its own, and hands back when it ends.
OWN_TO_A_RECOMPUTATION = (
    "nodes",
    "frame",
    "autocast",
    "autocast_cache",
    "module",
    "layer",
    "held",
    "kind",
)


# The launch that adds a gradient to that of the micro-batch before.
ACCUMULATE = "accumulate gradient"

# Context of a node whose inputs are broadcast along the last dimension: their gradients are summed along it.
ALONG_LAST = "along the last dimension"


class BackwardEngine(Engine):
    """The tape run backwards."""

    def backward(self) -> None:
        """Run the recorded graph backwards, freeing saved tensors as the engine does."""
        self.grad_enabled = False
        nodes = self.nodes
        while nodes:
            node = nodes.pop()
            if isinstance(node, str):
                self.mark(node)
            elif node.grad is not None:
                self._step(node)
            del node
        self.grad_enabled = True

    def _step(self, node: Node) -> None:
        grad, node.grad = node.grad, None
        self.module, self.layer = node.module, node.layer
        saved: Any = node.saved if node.frame is None else self._unpack(node)
        results: list[Any] = list(node.fn(self, grad, saved, node.context))
        if node.frame is not None:
            saved = None  # what was recomputed dies with the formula's locals, before gradients are cast
        edges = node.edges
        for i, edge in enumerate(edges):
            if edge is None or results[i] is None:
                results[i] = None
                continue
            if results[i].numel != edge[3]:
                results[i] = self.sum_to(results[i], edge[3], node.context is ALONG_LAST)
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
                self._reach(target, grad)
            elif target.outputs > 1:
                if target.grad is None:
                    target.grad = [None] * target.outputs
                held, target.grad[edge[1]] = target.grad[edge[1]], None
                target.grad[edge[1]] = grad if held is None else self._add_grads(held, grad)
                del held
            elif target.grad is None:
                target.grad = grad
            else:
                held, target.grad = target.grad, None
                target.grad = self._add_grads(held, grad)
                del held
            del grad
            if self.gathers:
                self._arrived(target)

    def _arrived(self, target: Any) -> None:
        """What gathers a weight's gradient comes before all else that waits, once it has the last part of it."""
        if target.__class__ is Node and target.name == SHARED:
            target.context -= 1
            if not target.context:
                self._step(target)

    def _reach(self, leaf: Leaf, grad: Tensor) -> None:
        """A gradient arrives at a tensor that asks for one: kept, or added to what came before."""
        held, leaf.grad = leaf.grad, None
        if held is None and grad.shape[0] > 1 and bytes_of(grad) < grad.storage.record.nbytes:
            grad = self.like(grad, "gradient")  # a part of something wider is no layout of its own
        leaf.grad = grad if held is None else self._add_grads(held, grad)

    def _add_grads(self, held: Tensor, grad: Tensor) -> Tensor:
        """Sum two gradients that meet: in place where the engine owns the first, else into a new one.

        A linear's gradients are views of what its product made, and the engine does not own a view.
        """
        alone = getrefcount(held) <= ALONE_AS_ARGUMENT and getrefcount(held.storage) <= ALONE_AS_ATTRIBUTE
        size = bytes_of(held, grad)
        if alone and not _viewed(held):
            self.write("add_", held.dtype, size, held.numel * held.dtype.itemsize)
            return held
        return self.like(held, "gradient sum", size)

    def _accumulate(self, parameter: Parameter, grad: Tensor, node_layer: int) -> None:
        key = id(parameter), node_layer
        if key[0] in self.shared:
            # a shared weight's gradients are summed before its accumulation node runs
            held = self.pending.pop(key, None)
            if held is not None:
                own = getrefcount(held.storage) <= ALONE_AS_ATTRIBUTE and not _viewed(held)
                size = bytes_of(held, grad)
                if own:
                    self.write("add_", held.dtype, size, bytes_of(held))
                grad = held if own else self.like(held, "gradient sum", size)
                del held
            self.uses[key] -= 1
            if self.uses[key]:
                self.pending[key] = grad
                return
        if self.accumulating:
            self.write(ACCUMULATE, grad.dtype, 2 * bytes_of(grad), bytes_of(grad))
            return  # added into the gradient that is there; `grad` goes with the caller's reference
        # shared with another holder, or not laid out as a weight is: cloned, not taken
        shared = getrefcount(grad) > ALONE_AS_ARGUMENT or getrefcount(grad.storage) > ALONE_AS_ATTRIBUTE
        if shared or grad.__class__ is Strided:
            grad = self.like(grad, "gradient")
        if self.passing is not None and self.passing.takes(parameter):
            grad.storage.record.kind = PASSING
            self.passing.arrive(parameter, grad)
            return
        grad.storage.record.kind = "gradient"
        self.gradient_bytes += grad.storage.record.size
        self.grads[key] = grad

    def _unpack(self, node: Node) -> list[Any]:
        frame = node.frame
        assert frame is not None
        if frame.recomputed is None:
            self._recompute(frame)
        recomputed = frame.recomputed
        assert recomputed is not None
        saved: list[Any] = []
        for number in node.saved:
            if number < 0:
                saved.append(None)
            else:
                saved.append(recomputed[number])
                recomputed[number] = None
        return saved

    def _recompute(self, frame: Frame) -> None:
        outer = [getattr(self, name) for name in OWN_TO_A_RECOMPUTATION]
        self.kind, self.module = "recomputed activation", ""
        self.nodes, self.frame, self.held = [], None, []
        self.autocast, self.autocast_cache = frame.state, {}
        self.recording, self.recording_target = [], frame.num_saved
        self.grad_enabled = True
        try:
            frame.run(*[self.leaf(x) for x in frame.inputs])
        except StopRecompute:
            pass
        finally:
            frame.recomputed = self.recording
            self.recording = None
            self.grad_enabled = False
            for name, value in zip(OWN_TO_A_RECOMPUTATION, outer):
                setattr(self, name, value)

    # ---- what a gradient goes through on its way
    def sum_to(self, grad: Tensor, numel: int, along_last: bool = False) -> Tensor:
        """A gradient summed back to the size of what was broadcast: over its rows, or along the last dimension."""
        out = self.new((numel,), numel, grad.dtype, "sum", grad.numel * grad.dtype.itemsize)
        rows = grad.numel // numel
        if rows >= SHARED_FROM and not along_last:
            self.workspace("sum", *sum_rows_sizes(rows, numel, self.compute_capability))
        return out

    def cast(self, x: Tensor, dtype: DType) -> Tensor:
        """A copy in another type, outside the graph."""
        return self.new(x.shape, x.numel, dtype, "_to_copy", x.numel * x.dtype.itemsize)


def _viewed(grad: Tensor) -> bool:
    """Whether a gradient is a view, or a linear's: its weight's, transposed, or its input's, folded back."""
    if isinstance(grad, GradientView):
        return True
    record = grad.storage.record
    return record.op == "mm.t" or (record.op == "mm" and len(record.shape) > 2)
