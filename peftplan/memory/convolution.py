"""One-dimensional convolution over a sequence.

Source: torch 2.13 derivatives.yaml (convolution), autocast_mode.h (its arguments are cast down).
Assumes: cuDNN takes an algorithm without workspace; none was seen, since nothing here was run with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from peftplan.memory.elementwise import ElementwiseOps
from peftplan.specs.tensors import Tensor, bytes_of

Grads = Sequence[Tensor | None]


def _convolution_backward(t: Any, g: Tensor, saved: Any, wanted: Any) -> Grads:
    x, weight = saved
    op = "convolution_backward"
    rows = weight.shape[0]
    num_flop = 2 * g.numel * (weight.numel // rows)
    grad_x = t.new(x.shape, x.numel, g.dtype, op, bytes_of(g, weight), num_flop) if wanted[0] else None
    grad_w = t.new(weight.shape, weight.numel, g.dtype, op, bytes_of(g, x), num_flop) if wanted[1] else None
    grad_b = t.new((rows,), rows, g.dtype, op, bytes_of(g)) if wanted[2] else None
    return (grad_x, grad_w, grad_b)


class ConvolutionOps(ElementwiseOps):
    """Convolution of [batch, channels, length] tensors."""

    def conv1d(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A kernel of odd width whose padding keeps the length; saves its input and its weight."""
        if self.autocast is not None:
            x = self.autocast_to(x, self.autocast)
            weight = self.autocast_to(weight, self.autocast)
            bias = self.autocast_to(bias, self.autocast)
        edges = (x.edge, weight.edge, bias.edge)
        node = self.link(
            "ConvolutionBackward0",
            _convolution_backward,
            (x, weight),
            edges,
            tuple(edge is not None for edge in edges),
        )
        shape = (x.shape[0], weight.shape[0], x.shape[2])
        numel = prod(shape)
        num_flop = 2 * numel * (weight.numel // weight.shape[0])
        out = self.new(shape, numel, x.dtype, "convolution", bytes_of(x, weight, bias), num_flop)
        return self.attach(out, node)

    def conv_transpose(self, x: Tensor, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A transposed convolution of channels into one matrix of `shape`, the filters frozen; saves both."""
        if self.autocast is not None:
            weight = self.autocast_to(weight, self.autocast)
            x = self.autocast_to(x, self.autocast)
        node = self.link(
            "ConvolutionBackward0",
            _convolution_backward,
            (x, weight),
            (x.edge,),
            (x.edge is not None, False, False),
        )
        num_flop = 2 * x.numel * (weight.numel // weight.shape[0])
        out = self.new(shape, prod(shape), x.dtype, "convolution", bytes_of(x, weight), num_flop)
        return self.attach(out, node)
