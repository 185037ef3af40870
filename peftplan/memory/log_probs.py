"""Log-probabilities of single tokens, and the small operations that preference losses are made of.

Source: torch-derivatives, torch-indexing (a mask and one number become masked_fill); torch 2.13 ReduceOps.cpp
(logsumexp), FunctionsManual.cpp (logsumexp_backward, whose temporaries live to the end of the expression).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from peftplan.memory.loss import LossOps
from peftplan.memory.views import unary_backward
from peftplan.memory.workspaces.reductions import logsumexp_sizes
from peftplan.specs.formats import BOOL, INT64
from peftplan.specs.tensors import Tensor, bytes_of

Grads = Sequence[Tensor | None]


def _gather_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    shape, numel = context
    out = t.new(shape, numel, g.dtype, "new_zeros", 0)
    t.write("scatter_add_", g.dtype, bytes_of(g, saved[0]), bytes_of(g))
    return (out,)


def _logsumexp_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    x, result = saved
    apart = t.like(x, "sub", bytes_of(x, result))
    grown = t.like(x, "exp")
    out = t.like(x, "mul", bytes_of(g, grown))
    del apart, grown
    return (out,)


def _subtract_backward(t: Any, g: Tensor, saved: Any, context: tuple[bool, bool]) -> Grads:
    second = t.like(g, "neg") if context[1] else None
    return (g if context[0] else None, second)


def _rows_backward(t: Any, grads: Any, saved: Any, context: Any) -> Grads:
    shape, numel, dtype = context
    return (t.new(shape, numel, dtype, "stack", numel * dtype.itemsize),)


def _stack_backward(t: Any, g: Tensor, saved: Any, shapes: Any) -> Grads:
    return [t.part(g, shape) for shape in shapes]


def _fill_backward(t: Any, g: Tensor, saved: Any, shape: Any) -> Grads:
    # what was filled is a view: its part of the gradient is cut out, filled, and put back (CopySlices)
    size = prod(shape)
    out = t.new(shape, size, g.dtype, "new_empty_strided", bytes_of(g))
    part = t.new(shape, size, g.dtype, "clone")
    filled = t.new(shape, size, g.dtype, "masked_fill", bytes_of(part, saved[0]))
    t.write("copy_", g.dtype, bytes_of(filled), bytes_of(out))
    del part, filled
    return (out,)


def _sum_backward(t: Any, g: Tensor, saved: Any, shape: Any) -> Grads:
    return (Tensor(shape, prod(shape), g.dtype, g.storage, None),)  # each number seen as often as it was summed


def _mean_backward(t: Any, g: Tensor, saved: Any, shape: Any) -> Grads:
    return (t.new(shape, prod(shape), g.dtype, "div", bytes_of(g)),)


def _log_sigmoid_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (t.like(g, "log_sigmoid_backward", bytes_of(g, saved[0])),)


def _quotient_backward(t: Any, g: Tensor, saved: Any, shifts: bool) -> Grads:
    shifted = t.like(saved[0], "add") if shifts else None  # of log1p
    out = t.like(g, "div", bytes_of(g, saved[0]))
    del shifted
    return (out,)


def _exp_backward(t: Any, g: Tensor, saved: Any, shifts: bool) -> Grads:
    shifted = t.like(saved[0], "add") if shifts else None  # of expm1
    out = t.like(g, "mul", bytes_of(g, saved[0]))
    del shifted
    return (out,)


def _divide_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (t.like(g, "div", bytes_of(g, saved[0])),)


def _select_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    shape, numel = context
    out = t.new(shape, numel, g.dtype, "new_zeros", 0)
    t.write("index_add_", g.dtype, 2 * bytes_of(g), bytes_of(g))
    return (out,)


def _nansum_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    x = saved[0]
    test = t.new(x.shape, x.numel, BOOL, "isnan", bytes_of(x))
    turned = t.new(x.shape, x.numel, BOOL, "logical_not", bytes_of(test))
    out = t.like(x, "mul", bytes_of(g, turned))
    del test, turned
    return (out,)


def _part_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    shape, numel, part = context
    out = t.new(shape, numel, g.dtype, "new_empty_strided", bytes_of(g))
    inside = t.new(part, prod(part), g.dtype, "clone")
    divided = t.new(part, prod(part), g.dtype, "div")
    t.write("copy_", g.dtype, bytes_of(divided), bytes_of(divided))
    del inside, divided
    return (out,)


def _clamp_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    x = saved[0]
    zero = t.new((), 1, g.dtype, "scalar_tensor", 0)
    above, below = (t.new(x.shape, x.numel, BOOL, op, bytes_of(x)) for op in ("ge", "le"))
    out = t.like(g, "where", bytes_of(g, above, below))
    del zero, above, below
    return (out,)


def _minimum_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    made = []
    for op in ("lt", "gt"):
        half = t.like(g, "div")
        equal = t.new(g.shape, g.numel, BOOL, "eq", bytes_of(*saved))
        made.append(t.like(g, "where", bytes_of(g, half, equal)))
        other = t.new(g.shape, g.numel, BOOL, op, bytes_of(*saved))
        del half, equal, other
    return made


def _where_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    made = []
    for _ in range(2):
        zero = t.new((), 1, g.dtype, "scalar_tensor", 0)
        made.append(t.like(g, "where", bytes_of(g, saved[0])))
        del zero
    return made


class LogProbOps(LossOps):
    """Beside cross-entropy: what losses of log-probabilities call."""

    def rows_of(self, x: Tensor) -> list[Tensor]:
        """The rows of a batch, one by one (iteration, unbind): views whose gradients are stacked."""
        shape, number = x.shape[1:], int(x.shape[0])
        rows = [Tensor(shape, prod(shape), x.dtype, x.storage, None) for _ in range(number)]
        node = self.link("UnbindBackward0", _rows_backward, (), (x.edge,), (x.shape, x.numel, x.dtype))
        if node is not None:
            node.outputs = max(number, 2)  # gradients come as a list, however many there are
            for place, row in enumerate(rows):
                row.edge = (node, place, row.dtype, row.numel)
        return rows

    def stack(self, rows: Sequence[Tensor]) -> Tensor:
        """Rows put together; their gradients are views of one."""
        shape = (len(rows), *rows[0].shape)
        edges = tuple(row.edge for row in rows)
        node = self.link("StackBackward0", _stack_backward, (), edges, tuple(row.shape for row in rows))
        return self.attach(self.new(shape, prod(shape), rows[0].dtype, "stack"), node)

    def gather_one(self, x: Tensor, index: Tensor) -> Tensor:
        """One value of each last dimension; saves x and the index, its gradient is put into zeros."""
        node = self.link("GatherBackward0", _gather_backward, (index, x), (x.edge,), (x.shape, x.numel))
        read = index.numel * (x.dtype.itemsize + INT64.itemsize)
        return self.attach(self.new(index.shape, index.numel, x.dtype, "gather", read), node)

    def logsumexp(self, x: Tensor) -> Tensor:
        """Over the last dimension; saves its input and its result."""
        shape = x.shape[:-1]
        node = self.link("LogsumexpBackward0", _logsumexp_backward, (x,), (x.edge,))
        out = self.new(shape, prod(shape), x.dtype, "logsumexp", 3 * bytes_of(x))
        self.workspace("logsumexp", *logsumexp_sizes(x.numel, out.numel, x.dtype.itemsize))
        return self.saving_result(out, node)

    def subtract(self, a: Tensor, b: Tensor) -> Tensor:
        """a - b; saves nothing, and turns the gradient of b round."""
        wanted = (a.edge is not None, b.edge is not None)
        node = self.link("SubBackward0", _subtract_backward, (), (a.edge, b.edge), wanted)
        return self.attach(self.elementwise_result(a, b, "sub"), node)

    def fill_masked(self, x: Tensor, mask: Tensor) -> Tensor:
        """x[mask] = a number, in place, where x is a view; saves the mask."""
        node = self.link("IndexPutBackward0", _fill_backward, (mask,), (x.edge,), x.shape)
        self.write("masked_fill_", x.dtype, bytes_of(mask), bytes_of(x))
        return self.attach(Tensor(x.shape, x.numel, x.dtype, x.storage, None), node)

    def sum_of_rows(self, x: Tensor) -> Tensor:
        """Over the last dimension; saves nothing."""
        shape = x.shape[:-1]
        node = self.link("SumBackward1", _sum_backward, (), (x.edge,), x.shape)
        return self.attach(self.new(shape, prod(shape), x.dtype, "sum", bytes_of(x)), node)

    def mean_all(self, x: Tensor) -> Tensor:
        """One number; saves nothing."""
        node = self.link("MeanBackward0", _mean_backward, (), (x.edge,), x.shape)
        return self.attach(self.new((), 1, x.dtype, "mean", bytes_of(x)), node)

    def power_of_e(self, x: Tensor, op: str = "exp") -> Tensor:
        """exp or expm1; saves its result."""
        node = self.link("ExpBackward0", _exp_backward, (), (x.edge,), op == "expm1")
        return self.saving_result(self.like(x, op), node)

    def logarithm(self, x: Tensor, op: str = "log") -> Tensor:
        """log or log1p; saves its input."""
        node = self.link("LogBackward0", _quotient_backward, (x,), (x.edge,), op == "log1p")
        return self.attach(self.like(x, op), node)

    def either(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """where(condition, a, b); saves the condition."""
        node = self.link("WhereBackward0", _where_backward, (condition,), (a.edge, b.edge))
        return self.attach(self.like(a, "where", bytes_of(condition, a, b)), node)

    def divide_each(self, a: Tensor, b: Tensor) -> Tensor:
        """a / b, of which b wants no gradient; saves it."""
        node = self.link("DivBackward0", _divide_backward, (b,), (a.edge,))
        return self.attach(self.like(a, "div", bytes_of(a, b)), node)

    def scale_part(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A view of `shape` into x is divided in place; saves nothing."""
        node = self.link("CopySlices", _part_backward, (), (x.edge,), (x.shape, x.numel, shape))
        size = prod(shape) * x.dtype.itemsize
        self.write("div_", x.dtype, size, size)
        return self.attach(Tensor(x.shape, x.numel, x.dtype, x.storage, None), node)

    def clamp(self, x: Tensor) -> Tensor:
        """Between two numbers; saves its input."""
        node = self.link("ClampBackward1", _clamp_backward, (x,), (x.edge,))
        return self.attach(self.like(x, "clamp"), node)

    def minimum(self, a: Tensor, b: Tensor) -> Tensor:
        """The smaller of each two; saves both."""
        node = self.link("MinimumBackward0", _minimum_backward, (a, b), (a.edge, b.edge))
        return self.attach(self.elementwise_result(a, b, "minimum"), node)

    def sum_all(self, x: Tensor) -> Tensor:
        """One number; saves nothing."""
        node = self.link("SumBackward0", _sum_backward, (), (x.edge,), x.shape)
        return self.attach(self.new((), 1, x.dtype, "sum", bytes_of(x)), node)

    def one_less(self, x: Tensor) -> Tensor:
        """A number less x; saves nothing."""
        node = self.link("RsubBackward1", unary_backward, (), (x.edge,), "neg")
        return self.attach(self.like(x, "rsub"), node)

    def index_select(self, x: Tensor, index: Tensor) -> Tensor:
        """Some rows: a copy; saves their numbers, its gradient is one of the whole."""
        shape = (index.numel, *x.shape[1:])
        node = self.link("IndexSelectBackward0", _select_backward, (index,), (x.edge,), (x.shape, x.numel))
        return self.attach(self.new(shape, prod(shape), x.dtype, "index_select"), node)

    def nan_mean(self, x: Tensor) -> Tensor:
        """The mean of what is a number: a sum, divided by how many there are; saves x and that count."""
        test = self.new(x.shape, x.numel, BOOL, "ne", bytes_of(x))
        count = self.new((), 1, INT64, "sum", bytes_of(test))
        del test
        node = self.link("NansumBackward0", _nansum_backward, (x,), (x.edge,))
        total = self.attach(self.new((), 1, x.dtype, "nansum", bytes_of(x)), node)
        return self.divide_each(total, count)

    def log_sigmoid(self, x: Tensor) -> Tensor:
        """Saves its input."""
        node = self.link("LogSigmoidBackward0", _log_sigmoid_backward, (x,), (x.edge,))
        return self.attach(self.like(x, "log_sigmoid_forward"), node)
