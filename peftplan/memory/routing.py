"""Operations of mixture-of-experts layers: choosing experts, sorting tokens by expert, grouped products.

Every shape here follows from tokens x top_k and the weights, never from which expert a token takes: the
grouped product takes all rows sorted by expert and their offsets, so memory does not depend on routing.

Sources: torch 2.13 derivatives.yaml (topk, index, gather, div_, sum, _grouped_mm, baddbmm) and
FunctionsManual.cpp (index_backward and the backward of topk and gather fill one tensor of zeros in place);
transformers 5.23 integrations/moe.py (grouped_mm, the default where the library implements it).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from peftplan.memory.elementwise import ElementwiseOps
from peftplan.specs.formats import BOOL, FP32, INT64, DType
from peftplan.specs.tensors import Tensor, bytes_of

Grads = Sequence[Tensor | None]


def _zeros_of_input(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    shape, numel, dtype = context
    out = t.new(shape, numel, dtype, "new_zeros", 0)
    t.write("index_put_", dtype, bytes_of(g) + g.numel * INT64.itemsize, bytes_of(g))
    return (out,)


def _grouped_mm_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    x, weight, _ = saved
    x_shape, x_numel, weight_shape, weight_numel = context
    num_flop, op = 2 * g.numel * x_shape[-1], "_grouped_mm"
    grad_w = t.new(weight_shape, weight_numel, g.dtype, op, bytes_of(g, x), num_flop) if x is not None else None
    grad_x = t.new(x_shape, x_numel, g.dtype, op, bytes_of(g, weight), num_flop) if weight is not None else None
    return (grad_x, grad_w)


def _baddbmm_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    # each product is scaled into a second tensor by alpha
    lhs_shape, lhs_numel, rhs_shape, rhs_numel, wants_lhs, wants_rhs = context
    num_flop, size = 2 * g.numel * lhs_shape[-1], g.dtype.itemsize
    grad_lhs = product = None
    if wants_lhs:
        product = t.new(lhs_shape, lhs_numel, g.dtype, "bmm", (g.numel + rhs_numel) * size, num_flop)
        grad_lhs = t.new(lhs_shape, lhs_numel, g.dtype, "mul")
        product = None
    if not wants_rhs:
        return (g, grad_lhs, None)
    product = t.new(rhs_shape, rhs_numel, g.dtype, "bmm", (g.numel + lhs_numel) * size, num_flop)
    grad_rhs = t.new(rhs_shape, rhs_numel, g.dtype, "mul")
    del product
    return (g, grad_lhs, grad_rhs)


def _divide_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    read = bytes_of(g, saved[0])
    first = t.like(g, "div", read)
    second = t.like(g, "div", read)
    third = t.like(g, "neg")
    grad_divisor = t.like(g, "mul", bytes_of(second, third))
    del first, second, third
    return (t.like(g, "div", read), grad_divisor)


def _expand_last_backward(t: Any, g: Tensor, saved: Any, shape: tuple[int, ...]) -> Grads:
    return (t.part(g, shape),)


def _sum_of_groups_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    shape, numel, dtype = context
    return (t.new(shape, numel, dtype, "clone", bytes_of(g)),)


def _index_add_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    source = saved[1]
    return (g, t.new(source.shape, source.numel, g.dtype, "index_select"))


def _copied_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (t.like(g, "clone"),)


class RoutingOps(ElementwiseOps):
    """What a router and its experts call beside linears and elementwise operations."""

    # ---- without a gradient
    def integers(self, shape: tuple[int, ...], op: str, dtype: DType = INT64) -> Tensor:
        """A tensor of indices or counts, outside the graph."""
        return self.new(shape, prod(shape), dtype, op)

    # ---- choosing
    def topk(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest along the last dimension and where they are; saves where."""
        shape = (*x.shape[:-1], k)
        node = self.link("TopkBackward0", _zeros_of_input, (), (x.edge,), (x.shape, x.numel, x.dtype))
        values = self.new(shape, prod(shape), x.dtype, "topk", bytes_of(x))
        indices = self.further(shape, prod(shape), INT64, "topk")
        if node is not None:
            self.save(node, (indices,))
        return self.attach(values, node), indices

    def gather(self, x: Tensor, indices: Tensor) -> Tensor:
        """x's entries at `indices` along the last dimension; saves x and the indices."""
        node = self.link("GatherBackward0", _zeros_of_input, (x, indices), (x.edge,), (x.shape, x.numel, x.dtype))
        return self.attach(self.new(indices.shape, indices.numel, x.dtype, "gather"), node)

    def rows(self, x: Tensor, index: Tensor) -> Tensor:
        """x[index], whole rows; saves the index, and its gradient is a tensor of x's size."""
        node = self.link("IndexBackward0", _zeros_of_input, (index,), (x.edge,), (x.shape, x.numel, x.dtype))
        shape = (*index.shape, *x.shape[1:])
        return self.attach(self.new(shape, prod(shape), x.dtype, "index"), node)

    def pick_rows(self, x: Tensor, index: Tensor) -> Tensor:
        """x[index, other], one entry of each of these rows; saves both indices."""
        node = self.link("IndexBackward0", _zeros_of_input, (index, index), (x.edge,), (x.shape, x.numel, x.dtype))
        return self.attach(self.new((index.numel,), index.numel, x.dtype, "index"), node)

    def index_add_(self, x: Tensor, index: Tensor, source: Tensor) -> Tensor:
        """Rows of `source` added to those rows of x in place; saves the index and, for its shape, the source."""
        node = self.link("IndexAddBackward0", _index_add_backward, (index, source), (x.edge, source.edge))
        self.write("index_add_", x.dtype, bytes_of(index) + 2 * bytes_of(source), bytes_of(source))
        return self._in_place(x, node)

    def masked_fill(self, x: Tensor, mask: Tensor) -> Tensor:
        """x with a number where the mask is set; saves the mask."""
        node = self.link("MaskedFillBackward0", _masked_fill_backward, (mask,), (x.edge,))
        return self.attach(self.like(x, "masked_fill"), node)

    def masked_fill_(self, x: Tensor, mask: Tensor) -> Tensor:
        """The same in place; saves the mask."""
        node = self.link("MaskedFillBackward0", _masked_fill_backward, (mask,), (x.edge,))
        self.write("masked_fill_", x.dtype, bytes_of(mask, x), bytes_of(x))
        return self._in_place(x, node)

    def where(self, condition: Tensor, x: Tensor) -> Tensor:
        """x where the condition holds, elsewhere a number, which is made a tensor first; saves the condition."""
        node = self.link("WhereBackward0", _where_backward, (condition,), (x.edge,))
        number = self.new((), 1, x.dtype, "scalar_tensor", 0)
        shape = tuple(map(max, condition.shape, x.shape))
        out = self.new(shape, prod(shape), x.dtype, "where", bytes_of(condition, x))
        del number
        return self.attach(out, node)

    # ---- arithmetic
    def sum_last(self, x: Tensor) -> Tensor:
        """Sum over the last dimension, kept (autocast: in fp32); saves nothing."""
        shape = (*x.shape[:-1], 1)
        node = self.link("SumBackward1", _expand_last_backward, (), (x.edge,), x.shape)
        dtype = FP32 if self.autocast is not None else x.dtype
        return self.attach(self.new(shape, prod(shape), dtype, "sum", bytes_of(x)), node)

    def sum_inner(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Sum over a dimension before the last (autocast: in fp32); its gradient is seen repeated."""
        node = self.link("SumBackward1", _expand_last_backward, (), (x.edge,), x.shape)
        dtype = FP32 if self.autocast is not None else x.dtype
        return self.attach(self.new(shape, prod(shape), dtype, "sum", bytes_of(x)), node)

    def sum_groups(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Sum of consecutive rows to `shape` (autocast: in fp32); its gradient is copied out in full."""
        node = self.link("SumBackward1", _sum_of_groups_backward, (), (x.edge,), (x.shape, x.numel, x.dtype))
        dtype = FP32 if self.autocast is not None else x.dtype
        return self.attach(self.new(shape, prod(shape), dtype, "sum", bytes_of(x)), node)

    def divide_(self, x: Tensor, divisor: Tensor) -> Tensor:
        """x /= divisor: saves the divisor and a copy of x."""
        edges = (x.edge, divisor.edge)
        node = self.link("DivBackward0", _divide_backward, (divisor,), edges)
        if node is not None and divisor.edge is not None:
            copy = self.like(x, "clone")
            self.save(node, (copy,))
        self.write("div_", x.dtype, bytes_of(x, divisor), bytes_of(x))
        return self._in_place(x, node)

    def add_(self, x: Tensor, other: Tensor) -> Tensor:
        """x += other; saves nothing."""
        node = self.link("AddBackward0", _add_in_place_backward, (), (x.edge, other.edge))
        self.write("add_", x.dtype, bytes_of(x, other), bytes_of(x))
        return self._in_place(x, node)

    def _in_place(self, x: Tensor, node: Any) -> Tensor:
        return self.attach(Tensor(x.shape, x.numel, x.dtype, x.storage, x.edge), node)

    def clamp(self, x: Tensor, bounds: int = 2) -> Tensor:
        """x held under one bound or between two; saves x."""
        node = self.link("ClampBackward1", _clamp_backward, (x,), (x.edge,), bounds)
        return self.attach(self.like(x, "clamp"), node)

    def max_last(self, x: Tensor) -> Tensor:
        """The largest of the last dimension, kept; saves where it is."""
        shape = (*x.shape[:-1], 1)
        node = self.link("MaxBackward0", _zeros_of_input, (), (x.edge,), (x.shape, x.numel, x.dtype))
        values = self.new(shape, prod(shape), x.dtype, "max", bytes_of(x))
        indices = self.further(shape, prod(shape), INT64, "max")
        if node is not None:
            self.save(node, (indices,))
        return self.attach(values, node)

    def clamp_between(self, x: Tensor, least: Tensor, most: Tensor) -> Tensor:
        """x held between two tensors of one number; saves all three."""
        node = self.link("ClampBackward0", _clamp_between_backward, (x, least, most), (x.edge,))
        return self.attach(self.like(x, "clamp"), node)

    # ---- products
    def grouped_mm(self, x: Tensor, weight: Tensor, offsets: Tensor, columns: int) -> Tensor:
        """Rows of x, sorted by expert, times each one's matrix of [experts, ...] `weight`.

        The kernel takes no part in autocast: the caller casts x to the weight's type. Saves the input and
        the weight, each if the other wants a gradient, and the offsets.
        """
        x_edge, w_edge = x.edge, weight.edge
        node = self.link(
            "GroupedMmBackward0",
            _grouped_mm_backward,
            (x if w_edge is not None else None, weight if x_edge is not None else None, offsets),
            (x_edge, w_edge),
            (x.shape, x.numel, weight.shape, weight.numel),
        )
        rows = x.shape[0]
        num_flop = 2 * rows * columns * x.shape[-1]
        out = self.new((rows, columns), rows * columns, x.dtype, "_grouped_mm", bytes_of(x, weight), num_flop)
        return self.attach(out, node)

    def baddbmm(self, base: Tensor, lhs: Tensor, rhs: Tensor) -> Tensor:
        """base + alpha * lhs @ rhs over experts, autocast off; saves each factor if the other wants a gradient."""
        node = self.link(
            "BaddbmmBackward0",
            _baddbmm_backward,
            (lhs if rhs.edge is not None else None, rhs if lhs.edge is not None else None),
            (base.edge, lhs.edge, rhs.edge),
            (lhs.shape, lhs.numel, rhs.shape, rhs.numel, lhs.edge is not None, rhs.edge is not None),
        )
        num_flop = 2 * base.numel * lhs.shape[-1]
        out = self.new(base.shape, base.numel, base.dtype, "baddbmm", bytes_of(base, lhs, rhs), num_flop)
        return self.attach(out, node)

    def permuted(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A view whose gradient has to be copied into the order of `x` before it can be viewed back."""
        node = self.link("ViewBackward0", _copied_backward, (), (x.edge,))
        return self.attach(Tensor(shape, x.numel, x.dtype, x.storage, None), node)


def _masked_fill_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (t.like(g, "masked_fill"),)


def _where_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    number = t.new((), 1, g.dtype, "scalar_tensor", 0)
    out = t.like(g, "where", bytes_of(g, saved[0]))
    del number
    return (out,)


def _clamp_between_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    x = saved[0]
    above = t.new(x.shape, x.numel, BOOL, "ge", bytes_of(x))
    below = t.new(x.shape, x.numel, BOOL, "le", bytes_of(x))
    t.write("logical_and_", BOOL, bytes_of(above, below), bytes_of(above))
    number = t.new((), 1, g.dtype, "scalar_tensor", 0)
    out = t.like(g, "where", bytes_of(g, above))
    del above, below, number
    return (out,)


def _add_in_place_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (g, g)


def _clamp_backward(t: Any, g: Tensor, saved: Any, bounds: int) -> Grads:
    (x,) = saved
    number = t.new((), 1, g.dtype, "scalar_tensor", 0)
    inside = [t.new(x.shape, x.numel, BOOL, "le", bytes_of(x)) for _ in range(bounds)]
    out = t.like(g, "where", bytes_of(g, inside[0]))
    del number, inside
    return (out,)
