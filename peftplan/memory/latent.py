"""Operations of latent attention: keys joined in place from two parts, rotation of interleaved pairs.

Sources: torch 2.13 derivatives.yaml (sub, expand, view_as_real, mul of complex numbers), autograd/functions/
tensor.cpp (CopySlices) and native/MathBitsFallback.h (a conjugated factor is copied before it is multiplied).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftplan.memory.elementwise import ElementwiseOps
from peftplan.specs.tensors import Tensor, bytes_of

Grads = Sequence[Tensor | None]


def _sub_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (g, t.like(g, "neg") if context else None)


def _copy_slices_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    # a copy of the whole gradient, in which the slice is then zeroed, and a copy of the slice
    shape, numel, base_wants = context
    whole = t.like(g, "new_empty_strided")
    piece = t.new(shape, numel, g.dtype, "clone")
    if base_wants:
        zeros = t.new(shape, numel, g.dtype, "zeros_like", 0)
        del zeros
        t.write("copy_", g.dtype, bytes_of(piece), bytes_of(piece))
    return (whole, piece)


def _complex_mul_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    (table,) = saved
    conjugate = t.like(table, "clone")
    out = t.like(g, "mul", bytes_of(g, conjugate))
    del conjugate
    return (out,)


class LatentOps(ElementwiseOps):
    """What latent attention calls beside linears, norms and the attention kernel."""

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        """a - b; saves nothing, and negates the gradient of b, if it wants one, into a tensor of its own."""
        node = self.link("SubBackward0", _sub_backward, (), (a.edge, b.edge), b.edge is not None)
        return self.attach(self.elementwise_result(a, b, "sub"), node)

    def copy_into(self, base: Tensor, part: Tensor) -> Tensor:
        """base[..., a:b].copy_(part): the same storage as the result of a further operation."""
        node = self.link(
            "CopySlices",
            _copy_slices_backward,
            (),
            (base.edge, part.edge),
            (part.shape, part.numel, base.edge is not None),
        )
        self.write("copy_", base.dtype, bytes_of(part), bytes_of(part))
        return self.attach(Tensor(base.shape, base.numel, base.dtype, base.storage, None), node)

    def complex_mul(self, x: Tensor, table: Tensor) -> Tensor:
        """Pairs of numbers of x, read as complex, times a table without gradient, which is saved."""
        node = self.link("MulBackward0", _complex_mul_backward, (table,), (x.edge,))
        return self.attach(self.like(x, "mul", bytes_of(x, table)), node)
