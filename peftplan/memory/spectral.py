"""Convolution around a circle, block by block, as products of spectra.

Mirrors peft 0.21 tuners/c3a/utils.py: an autograd function whose two passes transform, multiply by torch.einsum
(one batched product of complex numbers) and transform back. Spectra are kept whole, two numbers of fp32 for each
real one, and none outlives its pass. Source: c3a

Assumes: plans of cuFFT take no workspace.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from peftplan.memory.graph import Strided
from peftplan.memory.matrix import MatrixOps
from peftplan.specs.formats import FP32
from peftplan.specs.tensors import Tensor, bytes_of

Grads = Sequence[Tensor | None]
_COMPLEX_FLOP = 8  # of a multiply-add of complex numbers: four products, four sums


def _spectrum(t: Any, x: Tensor) -> Tensor:
    """The transform of real numbers, both halves of it."""
    return t.new((*x.shape, 2), 2 * x.numel, FP32, "_fft_r2c", bytes_of(x))  # type: ignore[no-any-return]


def _product(t: Any, a: Tensor, b: Tensor, shape: tuple[int, ...], inner: int) -> Tensor:
    numel = 2 * prod(shape)
    return t.new((*shape, 2), numel, FP32, "bmm", bytes_of(a, b), _COMPLEX_FLOP // 2 * numel * inner)  # type: ignore[no-any-return]


def _real(t: Any, spectrum: Tensor) -> Tensor:
    """The real part of a transform back, a view: every second number of what is there."""
    wide = t.like(spectrum, "_fft_c2c")
    return t.part(wide, wide.shape[:-1])  # type: ignore[no-any-return]


def _backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    x, kernel = saved
    outer, inner, block = kernel.shape
    tokens = x.numel // (inner * block)
    of_gradient = _spectrum(t, g)
    of_kernel = _spectrum(t, kernel)
    product = _product(t, of_gradient, of_kernel, (block, tokens, inner), outer)
    del of_kernel
    grad_x = _real(t, product)
    del product
    of_x = _spectrum(t, x)
    product = _product(t, of_gradient, of_x, (block, outer, inner), tokens)
    del of_x
    grad_kernel = _real(t, product)
    return (_strided(grad_x, x), _strided(grad_kernel, kernel))


def _strided(grad: Tensor, like: Tensor) -> Tensor:
    return Strided(like.shape, like.numel, grad.dtype, grad.storage, None)


class SpectralOps(MatrixOps):
    """What is computed in spectra."""

    def circular_convolution(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Blocks of x convolved with those of a [blocks out, blocks in, block] kernel; saves both."""
        outer, inner, block = kernel.shape
        node = self.link("BlockCircularConvolutionBackward", _backward, (x, kernel), (x.edge, kernel.edge))
        tokens = x.numel // (inner * block)
        of_x, of_kernel = _spectrum(self, x), _spectrum(self, kernel)
        product = _product(self, of_x, of_kernel, (block, tokens, outer), inner)
        del of_x, of_kernel
        out = _real(self, product)
        del product
        return self.attach(self.part(out, (*x.shape[:-1], outer * block)), node)
