"""Elementwise and reduction operations: what each allocates and saves.

Every operation mirrors torch 2.13's: `link` names the tensors autograd keeps (derivatives.yaml), then
the output is allocated; the backward formulas list their temporaries in the order they appear in
FunctionsManual.cpp, C++ temporaries living to the end of the full expression.
"""

from __future__ import annotations

from math import prod
from typing import Any

from peftplan.memory.backward import ALONG_LAST
from peftplan.memory.views import Grads, ViewOps, same_gradient, unary_backward
from peftplan.specs.formats import FP32, DType, promote
from peftplan.specs.tensors import Tensor, bytes_of


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


def _along_last(a: Tensor, b: Tensor) -> str | None:
    """What says that one of two is broadcast along the last dimension."""
    along = a.shape[-1:] != b.shape[-1:] and (a.shape[-1:] == (1,) or b.shape[-1:] == (1,))
    return ALONG_LAST if along else None


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


class ElementwiseOps(ViewOps):
    """Everything that is not a matrix product, attention or the loss."""

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
        node = self.link("AddBackward0", _add_backward, (), (a.edge, b.edge), _along_last(a, b))
        return self.attach(self.elementwise_result(a, b, "add"), node)

    def add_scalar(self, x: Tensor) -> Tensor:
        """x plus a Python number; saves nothing."""
        node = self.link("AddBackward0", same_gradient, (), (x.edge,))
        return self.attach(self.like(x, "add"), node)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        """a * b; saves each factor that the other's gradient needs."""
        saved = (b if a.edge is not None else None, a if b.edge is not None else None)
        node = self.link("MulBackward0", _mul_backward, saved, (a.edge, b.edge), _along_last(a, b))
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

    def mul_in_place(self, a: Tensor, b: Tensor) -> Tensor:
        """a *= b; saves what a was, in a copy, and b, as the gradients of b and a need them."""
        before = self.like(a, "clone") if b.edge is not None and self.grad_enabled else None
        saved = (b if a.edge is not None else None, before)
        node = self.link("MulBackward0", _mul_backward, saved, (a.edge, b.edge))
        self.write("mul_", a.dtype, bytes_of(a, b), bytes_of(a))
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

    def mean_rows(self, x: Tensor) -> Tensor:
        """Mean over the first dimension of a matrix; saves nothing."""
        node = self.link("MeanBackward1", _mean_backward, (), (x.edge,), (x.shape, x.numel))
        return self.attach(self.new(x.shape[1:], x.shape[1], x.dtype, "mean", bytes_of(x)), node)

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
