"""Casts, views, copies and joins: the same values in another type, shape or layout.

Source: torch 2.13 derivatives.yaml, FunctionsManual.cpp; ATen/autocast_mode.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from peftplan.memory.backward import BackwardEngine
from peftplan.memory.graph import SHARED, GradientView, Leaf, Node
from peftplan.specs.formats import FP32, INT64, DType, promote
from peftplan.specs.tensors import Parameter, Tensor, bytes_of

Grads = Sequence[Tensor | None]


def _to_copy_backward(t: Any, g: Tensor, saved: Any, dtype: DType) -> Grads:
    return (t.cast(g, dtype),)


def same_gradient(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    """The gradient of what came out is that of what came in."""
    return (g,)


def unary_backward(t: Any, g: Tensor, saved: Any, context: str) -> Grads:
    """One new tensor like the gradient, of that and what was saved."""
    return (t.like(g, context, bytes_of(g, *saved)),)


def _is_leaf(source: Any) -> bool:
    """Whether a tensor comes of no operation, but of a weight, perhaps one that blocks share, or of an input."""
    return source.__class__ in (Parameter, Leaf) or (source.__class__ is Node and source.name == SHARED)


def _seen_backward(t: Any, g: Tensor, saved: Any, shape: tuple[int, ...]) -> Grads:
    return (GradientView(shape, g.numel, g.dtype, g.storage, None),)


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


def _masked_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    out = t.new(*context, g.dtype, "new_zeros", 0)
    dims = len(saved[0].shape)
    places = t.new((g.numel, dims), g.numel * dims, INT64, "nonzero", bytes_of(saved[0]))
    t.write("index_put_", g.dtype, 2 * bytes_of(g), bytes_of(g))
    del places
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


class ViewOps(BackwardEngine):
    """What changes how values lie, and not what they are."""

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
        if x.edge is not None and x.dtype is FP32 and _is_leaf(x.edge[0]):
            if x.__class__ is not Parameter and x.edge[0].__class__ is Parameter:
                return self.to(x, dtype)  # a view of a weight
            # a leaf is cast once and kept until the autocast region ends (ATen/autocast_mode.cpp cached_cast)
            key = (id(x.edge[0]), self.layer if x.__class__ is Parameter else -1)
            held = self.autocast_cache.get(key)
            if held is None:
                held = self.autocast_cache[key] = self.to(x, dtype)
            return held
        if x.__class__ is Parameter and x.role == "reference" and x.dtype is FP32:  # it asks for a gradient too
            key = (id(x), self.layer)
            if key not in self.autocast_cache:
                self.autocast_cache[key] = self.to(x, dtype)
            return self.autocast_cache[key]
        return self.to(x, dtype)

    # ---- views
    def shared_weight(self, weight: Parameter) -> Tensor:
        """A weight that several blocks are given: their gradients meet before it is reached."""
        node = self.link(SHARED, same_gradient, (), (weight.edge,), 0)
        self.gathers = True
        return self.attach(Tensor(weight.shape, weight.numel, weight.dtype, weight.storage, None), node)

    @staticmethod
    def view(x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The same bytes under another shape (view, transpose, unsqueeze)."""
        return Tensor(shape, x.numel, x.dtype, x.storage, x.edge)

    def seen(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A view that is a node of the graph: to a cast it is no weight, and its gradient is a view as well."""
        node = self.link("ViewBackward0", _seen_backward, (), (x.edge,), x.shape)
        return self.attach(Tensor(shape, x.numel, x.dtype, x.storage, None), node)

    def alias(self, x: Tensor) -> Tensor:
        """A slice of the whole: a node of the graph that hands its gradient on."""
        node = self.link("AliasBackward0", same_gradient, (), (x.edge,))
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

    def index(self, x: Tensor, indices: tuple[Tensor, ...], shape: tuple[int, ...]) -> Tensor:
        """x[indices], an index for each of its first dimensions: a copy; saves them, its gradient is whole."""
        node = self.link("IndexBackward0", _index_backward, indices, (x.edge,), (x.shape, x.numel))
        return self.attach(self.new(shape, prod(shape), x.dtype, "index"), node)

    def masked(self, x: Tensor, mask: Tensor, count: int, shape: tuple[int, ...]) -> Tensor:
        """x[..., mask], set in so many places, which are found here and again in backward; saves the mask."""
        node = self.link("IndexBackward0", _masked_backward, (mask,), (x.edge,), (x.shape, x.numel))
        dims = len(mask.shape)
        places = self.new((count, dims), count * dims, INT64, "nonzero", bytes_of(mask))
        out = self.new(shape, prod(shape), x.dtype, "index")
        del places
        return self.attach(out, node)

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
        node = self.link("CloneBackward0", same_gradient, (), (x.edge,))
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
