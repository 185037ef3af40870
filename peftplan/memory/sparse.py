"""A matrix added to where another has values: few of them, at places that are kept as indices.

Sources: torch-derivatives (_sparse_coo_tensor_with_dims_and_tensors); torch-sparse: SparseCUDATensorMath.cu
(add_out_dense_sparse_cuda: values of another type are added in that, in copies of the whole), SparseTensor.cpp
(sparse_mask) and SparseTensorMath.cpp (intersection_binary_op_sparse_dense_out), SparseCUDATensor.cu (coalesce).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftplan.memory.matrix import MatrixOps
from peftplan.specs.formats import INT64
from peftplan.specs.tensors import Tensor, bytes_of

Grads = Sequence[Tensor | None]


def _added_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (None, g)  # the engine brings it to the type of the values


def _placed_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    indices, values = saved
    mask = t.new((1,), 1, g.dtype, "ones", 0)
    picked = t.new(values.shape, values.numel, g.dtype, "index", bytes_of(indices, values))
    copied = t.like(indices, "clone")
    out = t.like(picked, "mul")
    del mask, picked, copied
    return (out,)


def _densified_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    values, _coalesced, indices = saved
    (picked,) = _placed_backward(t, g, (indices, values), None)
    return (t.like(picked, "sparse_mask", 2 * bytes_of(picked) + bytes_of(indices)),)  # once more, as sparse


def _scatter_added_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    shape, numel = context
    return (t.new(shape, numel, g.dtype, "gather", bytes_of(saved[0]) + numel * g.dtype.itemsize),)


class SparseOps(MatrixOps):
    """What is done with few values of many."""

    def scatter_added(self, x: Tensor, index: Tensor, values: Tensor) -> Tensor:
        """A copy of a frozen matrix with values added at places of it; saves the places."""
        context = values.shape, values.numel
        node = self.link("ScatterAddBackward0", _scatter_added_backward, (index,), (values.edge,), context)
        out = self.new(x.shape, x.numel, x.dtype, "scatter_add", x.numel * x.dtype.itemsize)
        self.write("index_put_", values.dtype, bytes_of(index) + 2 * bytes_of(values), bytes_of(values))
        return self.attach(out, node)

    def coalesced(self, values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Values and indices of torch.sparse_coo_tensor(indices, values).coalesce(), in order and each once.

        Assumes: what the sort takes beside what it sorts is freed before, and is less than, what comes next.
        """
        count = values.numel
        with self.no_grad():
            held = [self.new((count,), count, INT64, "flatten_indices", bytes_of(indices))]
            held += [self.new((count,), count, INT64, "arange", 0) for _ in range(2)]
            merged = self.like(values, "coalesce", bytes_of(values, *held))
            places = self.new(indices.shape, indices.numel, INT64, "coalesce", bytes_of(held[0]))
        del held
        return merged, places

    def densified(self, values: Tensor, sparse: tuple[Tensor, Tensor], shape: tuple[int, ...]) -> Tensor:
        """A sparse matrix made dense; saves its values, and those and the indices of the coalesced one."""
        node = self.link("ToDenseBackward0", _densified_backward, (values, *sparse), (values.edge,))
        out = self.new(shape, shape[0] * shape[1], values.dtype, "zeros", 0)
        self.write("index_put_", values.dtype, bytes_of(*sparse) + bytes_of(values), bytes_of(values))
        return self.attach(out, node)

    def add_sparse_(self, x: Tensor, values: Tensor, indices: Tensor) -> Tensor:
        """x += torch.sparse_coo_tensor(indices, values), with indices in int64; saves these and the values."""
        node = self.link("SparseCooTensorBackward0", _placed_backward, (indices, values), (values.edge,))
        placed = self.attach(Tensor(x.shape, x.numel, values.dtype, values.storage, None), node)
        node = self.link("AddBackward0", _added_backward, (), (x.edge, placed.edge))
        held = []
        if x.dtype is not values.dtype:
            held.append(self.new(x.shape, x.numel, values.dtype, "empty_like", 0))
            held.append(self.new(x.shape, x.numel, values.dtype, "_to_copy", bytes_of(x)))
            self.write("copy_", values.dtype, bytes_of(held[1]), bytes_of(held[0]))
        flat = self.new((values.numel,), values.numel, INT64, "arange", bytes_of(indices))
        self.write("index_add_", values.dtype, bytes_of(flat) + 2 * bytes_of(values), bytes_of(values))
        if held:
            self.write("copy_", x.dtype, bytes_of(held[0]), bytes_of(x))
        del flat, held
        return self.attach(Tensor(x.shape, x.numel, x.dtype, x.storage, None), node)
