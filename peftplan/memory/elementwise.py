"""Elementwise, reduction, shape and normalisation operations: what each allocates and saves.

Every operation mirrors torch 2.13's: `link` names the tensors autograd keeps (derivatives.yaml), then
the output is allocated; the backward formulas list their temporaries in the order they appear in
FunctionsManual.cpp, C++ temporaries living to the end of the full expression.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from peftplan.memory.backward import ALONG_LAST, BackwardEngine
from peftplan.memory.graph import Leaf
from peftplan.specs.formats import FP32, INT64, DType, promote
from peftplan.specs.tensors import Parameter, Tensor, bytes_of

Grads = Sequence[Tensor | None]


def _broadcast(a: Tensor, b: Tensor) -> tuple[tuple[int, ...], int]:
    """Shape and element count of an elementwise result."""
    x, y = a.shape, b.shape
    if x == y:
        return x, a.numel
    if len(x) < len(y):
        x, y = y, x
    y = (1,) * (len(x) - len(y)) + y
    shape = tuple(i if i >= j else j for i, j in zip(x, y))
    return shape, prod(shape)


def _to_copy_backward(t: Any, g: Tensor, saved: Any, dtype: DType) -> Grads:
    return (t.cast(g, dtype),)


def _same(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (g,)


def _add_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (g, g)


def _scaled(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (t.like(g, "mul"),)


def _mul_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    # each product has the output's size; the engine sums it where an input was broadcast; the second comes first
    b, a = saved
    second = t.new(g.shape, g.numel, t.result_type(g, a), "mul", bytes_of(g, a)) if a is not None else None
    first = t.new(g.shape, g.numel, t.result_type(g, b), "mul", bytes_of(g, b)) if b is not None else None
    return (first, second)


def _pow_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    power = t.like(saved[0], "pow")
    scaled = t.like(saved[0], "mul")
    out = t.like(saved[0], "mul", bytes_of(g, scaled))
    del power, scaled
    return (out,)


def _mean_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    shape, numel = context
    return (t.new(shape, numel, g.dtype, "div", bytes_of(g)),)


def _rsqrt_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    scaled = t.like(g, "mul")
    power = t.like(g, "pow")
    out = t.like(g, "mul", bytes_of(scaled, power))
    del scaled, power
    return (out,)


def unary_backward(t: Any, g: Tensor, saved: Any, context: str) -> Grads:
    """One new tensor like the gradient, of that and what was saved."""
    return (t.like(g, context, bytes_of(g, *saved)),)


def _pass_views(t: Any, g: Tensor, saved: Any, shapes: Any) -> Grads:
    return [t.part(g, shape) for shape in shapes]


def _slice_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    shape, numel = context
    out = t.new(shape, numel, g.dtype, "slice_backward", 0)  # zeros, into which the gradient is copied
    t.write("copy_", g.dtype, bytes_of(g), bytes_of(g))
    return (out,)


def _index_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    shape, numel = context
    out = t.new(shape, numel, g.dtype, "new_zeros", 0)  # the gradient is put into it in place
    t.write("index_put_", g.dtype, 2 * bytes_of(g), bytes_of(g))
    return (out,)


def _split_backward(t: Any, grads: Any, saved: Any, context: Any) -> Grads:
    shape, numel, dtype, part_shapes = context
    # a branch without a gradient is filled with zeros before the pieces are joined
    zeros = [t.new(s, prod(s), dtype, "zeros", 0) if g is None else None for g, s in zip(grads, part_shapes)]
    out = t.new(shape, numel, dtype, "cat")
    del zeros
    return (out,)


def _expand_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (g,)  # the engine sums it to the input's size


class ElementwiseOps(BackwardEngine):
    """Everything that is not a matrix product, attention or the loss."""

    # ---- types
    def to(self, x: Tensor, dtype: DType) -> Tensor:
        """`x.to(dtype)`: itself when it has that type."""
        if x.dtype is dtype:
            return x
        node = self.link("ToCopyBackward0", _to_copy_backward, (), (x.edge,), x.dtype)
        return self.attach(self.new(x.shape, x.numel, dtype, "_to_copy", x.numel * x.dtype.itemsize), node)

    def autocast_to(self, x: Tensor, dtype: DType | None) -> Tensor:
        """What autocast passes to an operation of its lower-precision list."""
        if dtype is None or x.dtype is dtype or not x.dtype.is_float:
            return x
        if x.edge is not None and x.dtype is FP32 and x.edge[0].__class__ in (Parameter, Leaf):
            if x.__class__ is not Parameter and x.edge[0].__class__ is Parameter:
                return self.to(x, dtype)  # a view of a weight
            # a leaf is cast once and kept until the autocast region ends (ATen/autocast_mode.cpp cached_cast)
            key = (id(x.edge[0]), self.layer if x.__class__ is Parameter else -1)
            held = self.autocast_cache.get(key)
            if held is None:
                held = self.autocast_cache[key] = self.to(x, dtype)
            return held
        return self.to(x, dtype)

    # ---- views
    def shared_weight(self, weight: Parameter) -> Tensor:
        """A weight that several blocks are given: their gradients meet before it is reached."""
        node = self.link("AccumulateGrad", _same, (), (weight.edge,))
        return self.attach(Tensor(weight.shape, weight.numel, weight.dtype, weight.storage, None), node)

    @staticmethod
    def view(x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The same bytes under another shape (view, transpose, unsqueeze)."""
        return Tensor(shape, x.numel, x.dtype, x.storage, x.edge)

    def alias(self, x: Tensor) -> Tensor:
        """A slice of the whole: a node of the graph that hands its gradient on."""
        node = self.link("AliasBackward0", _same, (), (x.edge,))
        return self.attach(Tensor(x.shape, x.numel, x.dtype, x.storage, None), node)

    def regrouped(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A view whose gradient comes back in another layout, and is copied to fit."""
        node = self.link("ViewBackward0", unary_backward, (), (x.edge,), "clone")
        return self.attach(Tensor(shape, x.numel, x.dtype, x.storage, None), node)

    @staticmethod
    def part(x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A view of some of the bytes of `x`, outside the graph."""
        return Tensor(shape, prod(shape), x.dtype, x.storage, None)

    def slice(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A slice of `x`; its gradient is a tensor of the full size."""
        node = self.link("SliceBackward0", _slice_backward, (), (x.edge,), (x.shape, x.numel))
        return self.attach(Tensor(shape, prod(shape), x.dtype, x.storage, None), node)

    def pick(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """x[..., [i], ...], indexed by a list: a copy; saves the index, its gradient has the full size."""
        index = self.new((1,), 1, INT64, "index")
        node = self.link("IndexBackward0", _index_backward, (index,), (x.edge,), (x.shape, x.numel))
        return self.attach(self.new(shape, prod(shape), x.dtype, "index"), node)

    def split(self, x: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """`split`, `chunk` or `unbind`: views whose gradients are joined into one tensor."""
        if len(shapes) == 1:
            return [x]
        parts = [Tensor(s, prod(s), x.dtype, x.storage, None) for s in shapes]
        node = self.link(
            "SplitBackward0",
            _split_backward,
            (),
            (x.edge,),
            (x.shape, x.numel, x.dtype, tuple(shapes)),
        )
        if node is not None:
            node.outputs = len(parts)
            for i, p in enumerate(parts):
                p.edge = (node, i, p.dtype, p.numel)
        return parts

    def contiguous(self, x: Tensor, op: str = "clone") -> Tensor:
        """A copy of a tensor whose layout is not the one wanted."""
        node = self.link("CloneBackward0", _same, (), (x.edge,))
        return self.attach(self.like(x, op), node)

    clone = contiguous

    def relaid(self, x: Tensor) -> Tensor:
        """A contiguous copy of transposed dimensions that were split off one: the gradient is copied back too."""
        node = self.link("CloneBackward0", unary_backward, (), (x.edge,), "clone")
        return self.attach(self.like(x, "clone"), node)

    def expand_copy(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """expand followed by a copying reshape (repeat_kv): the gradient is summed back."""
        node = self.link("ExpandBackward0", _expand_backward, (), (x.edge,))
        return self.attach(self.new(shape, prod(shape), x.dtype, "clone", bytes_of(x)), node)

    def expand(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The same bytes seen several times; the gradient is summed back."""
        node = self.link("ExpandBackward0", _expand_backward, (), (x.edge,))
        return self.attach(Tensor(shape, prod(shape), x.dtype, x.storage, None), node)

    def cat(self, xs: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
        """Concatenate: the gradients are views of one.

        Of several types the widest: autocast casts to it before, the kernel as it copies.
        """
        dtype = xs[0].dtype
        for x in xs[1:]:
            dtype = promote(dtype, x.dtype)
        if self.autocast is not None:
            xs = [self.to(x, dtype) for x in xs]
        node = self.link(
            "CatBackward0",
            _pass_views,
            (),
            tuple(x.edge for x in xs),
            tuple(x.shape for x in xs),
        )
        return self.attach(self.new(shape, prod(shape), dtype, "cat"), node)

    # ---- arithmetic
    def elementwise_result(self, a: Tensor, b: Tensor, op: str) -> Tensor:
        """Allocate the result of an elementwise operation, outside the graph."""
        shape, numel = _broadcast(a, b)
        return self.new(shape, numel, self.result_type(a, b), op, bytes_of(a, b))

    @staticmethod
    def result_type(a: Tensor, b: Tensor) -> DType:
        """torch.result_type of two tensors: a zero-dimensional one does not widen the other."""
        if a.dtype is b.dtype:
            return a.dtype
        if not a.shape and b.shape:
            return b.dtype
        if not b.shape and a.shape:
            return a.dtype
        return promote(a.dtype, b.dtype)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """a + b (or a - b); saves nothing."""
        node = self.link("AddBackward0", _add_backward, (), (a.edge, b.edge))
        return self.attach(self.elementwise_result(a, b, "add"), node)

    def add_scalar(self, x: Tensor) -> Tensor:
        """x plus a Python number; saves nothing."""
        node = self.link("AddBackward0", _same, (), (x.edge,))
        return self.attach(self.like(x, "add"), node)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        """a * b; saves each factor that the other's gradient needs."""
        saved = (b if a.edge is not None else None, a if b.edge is not None else None)
        along_last = a.shape[-1:] != b.shape[-1:] and (a.shape[-1:] == (1,) or b.shape[-1:] == (1,))
        context = ALONG_LAST if along_last else None
        node = self.link("MulBackward0", _mul_backward, saved, (a.edge, b.edge), context)
        return self.attach(self.elementwise_result(a, b, "mul"), node)

    def mul_scalar(self, x: Tensor, op: str = "mul") -> Tensor:
        """x times (or divided by) a Python number; saves nothing."""
        node = self.link("MulBackward0", _scaled, (), (x.edge,))
        return self.attach(self.like(x, op), node)

    def add_in_place(self, a: Tensor, b: Tensor) -> Tensor:
        """a += b; saves nothing and allocates nothing."""
        node = self.link("AddBackward0", _add_backward, (), (a.edge, b.edge))
        self.write("add_", a.dtype, bytes_of(a, b), bytes_of(a))
        return self.attach(Tensor(a.shape, a.numel, a.dtype, a.storage, None), node)

    def scale_in_place(self, x: Tensor) -> Tensor:
        """x *= (or /=) a Python number; saves nothing and allocates nothing."""
        node = self.link("MulBackward0", _scaled, (), (x.edge,))
        self.write("mul_", x.dtype, bytes_of(x), bytes_of(x))
        return self.attach(Tensor(x.shape, x.numel, x.dtype, x.storage, None), node)

    def neg(self, x: Tensor) -> Tensor:
        """-x; saves nothing."""
        node = self.link("NegBackward0", unary_backward, (), (x.edge,), "neg")
        return self.attach(self.like(x, "neg"), node)

    def pow(self, x: Tensor) -> Tensor:
        """x to a constant power (autocast: in fp32); saves x."""
        if self.autocast is not None:
            x = self.to(x, FP32)
        node = self.link("PowBackward0", _pow_backward, (x,), (x.edge,))
        return self.attach(self.like(x, "pow"), node)

    def mean_last(self, x: Tensor) -> Tensor:
        """Mean over the last dimension, kept; saves nothing."""
        shape = (*x.shape[:-1], 1)
        node = self.link("MeanBackward1", _mean_backward, (), (x.edge,), (x.shape, x.numel))
        return self.attach(self.new(shape, prod(shape), x.dtype, "mean", bytes_of(x)), node)

    def rsqrt(self, x: Tensor) -> Tensor:
        """1/sqrt(x); saves its result."""
        node = self.link("RsqrtBackward0", _rsqrt_backward, (), (x.edge,))
        return self.saving_result(self.like(x, "rsqrt"), node)

    def saving_result(self, out: Tensor, node: Any) -> Tensor:
        if node is not None:
            self.save(node, (out,))
            out = Tensor(out.shape, out.numel, out.dtype, out.storage, None)
        return self.attach(out, node)

    def saving_input(self, x: Tensor, op: str) -> Tensor:
        node = self.link(op, unary_backward, (x,), (x.edge,), op + "_backward")
        return self.attach(self.like(x, op), node)
