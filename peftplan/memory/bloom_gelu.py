"""Bloom's GELU, an autograd function of its own: it saves its input and works its gradient out in Python.

Source: transformers 5.23 modeling_bloom.py, GeLUFunction, bloom_gelu_forward, bloom_gelu_back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftplan.memory.functions import FunctionOps
from peftplan.specs.tensors import Tensor

Grads = Sequence[Tensor | None]


def _backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    (x,) = saved
    tanh = t.tanh_of_cubic(x)
    factor = t.add(
        t.mul(
            t.mul_scalar(x),
            t.mul(t.add_scalar(t.mul(tanh, tanh)), t.add_scalar(t.mul(t.mul_scalar(x), x))),
        ),
        t.mul_scalar(t.add_scalar(tanh)),
    )
    return (t.mul(factor, g),)


class BloomGeluOps(FunctionOps):
    """0.5 * x * (1 + tanh(c * x * (1 + 0.044715 * x * x))) with nothing but x saved."""

    def tanh_of_cubic(self, x: Tensor) -> Tensor:
        """tanh(c * x * (1 + 0.044715 * x * x))."""
        return self.tanh(self.mul(self.mul_scalar(x), self.add_scalar(self.mul(self.mul_scalar(x), x))))

    def bloom_gelu(self, x: Tensor) -> Tensor:
        """The function applied."""
        node = self.link("GeLUFunctionBackward", _backward, (x,), (x.edge,))
        with self.no_grad():
            out = self.mul(self.mul_scalar(x), self.add_scalar(self.tanh_of_cubic(x)))
        return self.attach(out, node)
