"""Matrices taken apart, as initialisations of adapters do once before training: no gradient passes through them.

Results are those that torch.linalg returns; a solver's own workspace, a copy of its input at least, is not counted.
Flop are those of dense algorithms in the textbook: the singular value decomposition by way of QR with U and V,
6 m n^2 + 20 n^3 for m rows and fewer columns n; QR with its orthogonal factor 4 n^2 (m - n/3); an inverse 2 n^3.
Sources: golub-van-loan; torch 2.13 torch/_lowrank.py. Source: torch-lowrank
"""

from __future__ import annotations

from peftplan.memory.matrix import MatrixOps
from peftplan.specs.formats import FP32
from peftplan.specs.tensors import Tensor, bytes_of


class FactoringOps(MatrixOps):
    """Decompositions and inverses, in the type of their input."""

    def svd(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """torch.linalg.svd(x, full_matrices=False): [m, k], [k], [k, n]."""
        (m, n), k, dtype = x.shape, min(x.shape), x.dtype
        num_flop = 6 * max(m, n) * k * k + 20 * k**3
        u = self.new((m, k), m * k, dtype, "_linalg_svd", bytes_of(x), num_flop)
        s = self.further((k,), k, dtype, "_linalg_svd")
        return u, s, self.further((k, n), k * n, dtype, "_linalg_svd")

    def factors_qr(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """torch.linalg.qr(x): [m, k], [k, n]."""
        (m, n), k = x.shape, min(x.shape)
        num_flop = 4 * k * k * (3 * max(m, n) - k) // 3
        q = self.new((m, k), m * k, x.dtype, "linalg_qr", bytes_of(x), num_flop)
        return q, self.further((k, n), k * n, x.dtype, "linalg_qr")

    def inverse(self, x: Tensor) -> Tensor:
        """torch.linalg.inv(x)."""
        n = x.shape[0]
        return self.new(x.shape, x.numel, x.dtype, "linalg_inv", bytes_of(x), 2 * n**3)

    def svd_lowrank(self, x: Tensor, q: int, niter: int) -> tuple[Tensor, Tensor, Tensor]:
        """torch.svd_lowrank: subspace iteration from random columns; [m, q], [q], [n, q]."""
        m, n = x.shape
        tall, wide = max(m, n), min(m, n)
        basis = self._leading(x, tall, wide, q, niter)
        projected = self.matmul(self.view(basis, (q, tall)), x, (q, wide))
        u, s, vh = self.svd(projected)
        u = self.matmul(basis, u, (tall, q))
        v = self.view(vh, (wide, q))
        del basis, projected
        return (u, s, v) if m >= n else (v, s, u)

    def _leading(self, x: Tensor, tall: int, wide: int, q: int, niter: int) -> Tensor:
        """An orthogonal basis [tall, q] of where x sends most; its variables live until it is replaced."""
        drawn = self.new((wide, q), wide * q, x.dtype, "randn", 0)
        seen = self.matmul(x, drawn, (tall, q))
        basis = self.factors_qr(seen)[0]
        for _ in range(niter):
            for rows in (wide, tall):
                seen = self.matmul(x, basis, (rows, q))
                basis = self.factors_qr(seen)[0]
        return basis

    def diagonal(self, size: int) -> Tensor:
        """torch.diag of a vector: a square of mostly zeros."""
        return self.new((size, size), size * size, FP32, "diag_embed", 4 * size)
