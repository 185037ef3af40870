"""Systems of equations, and matrices put along the diagonal of a larger one.

Sources: torch-derivatives (linalg_solve, block_diag); torch 2.13 FunctionsManual.cpp, linalg_solve_backward.
Assumes: solvers take no workspace of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from peftplan.memory.matrix import MatrixOps
from peftplan.specs.formats import INT32
from peftplan.specs.tensors import Tensor, bytes_of

Grads = Sequence[Tensor | None]


def _solve_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    _matrix, factors, pivots, result = saved
    grad_right = t.like(g, "linalg_lu_solve", bytes_of(g, factors, pivots))
    product = t.like(g, "bmm", bytes_of(grad_right, result))
    grad_matrix = t.like(product, "neg")
    del product
    return (grad_matrix, grad_right)


def _block_diagonal_backward(t: Any, g: Tensor, saved: Any, shape: tuple[int, ...]) -> Grads:
    return (t.new(shape, prod(shape), g.dtype, "stack"),)


class SolvingOps(MatrixOps):
    """What is done with small matrices, many at a time."""

    def solve(self, matrix: Tensor, right: Tensor) -> Tensor:
        """torch.linalg.solve over a batch; saves the matrix, its LU factors with their pivots, and the result."""
        node = self.link("LinalgSolveExBackward0", _solve_backward, (matrix,), (matrix.edge, right.edge))
        out = self.like(right, "_linalg_solve_ex", bytes_of(matrix, right))
        factors = self.further(matrix.shape, matrix.numel, matrix.dtype, "_linalg_solve_ex")
        rows = matrix.shape[:-1]
        pivots = self.further(rows, prod(rows), INT32, "_linalg_solve_ex")
        info = self.further(matrix.shape[:-2], prod(matrix.shape[:-2]), INT32, "_linalg_solve_ex")
        if node is not None:
            self.save(node, (factors, pivots))
        del factors, pivots, info
        return self.saving_result(out, node)

    def block_diagonal(self, x: Tensor) -> Tensor:
        """[blocks, size, size] matrices along the diagonal of one; saves nothing."""
        size = x.shape[0] * x.shape[1]
        node = self.link("BlockDiagBackward0", _block_diagonal_backward, (), (x.edge,), x.shape)
        out = self.new((size, size), size * size, x.dtype, "block_diag", 0)
        self.write("copy_", x.dtype, bytes_of(x), bytes_of(x))
        return self.attach(out, node)
