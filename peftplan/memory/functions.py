"""Activation functions, softmax, dropout, layer norm and embeddings: what each allocates and saves.

Source: torch-derivatives; transformers 5.23 activations.py (the functions written out in Python).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from peftplan.memory.elementwise import ElementwiseOps
from peftplan.memory.graph import WITH_LAST
from peftplan.memory.views import unary_backward
from peftplan.memory.workspaces.embedding import UNSORTED_INDICES, embedding_backward_sizes
from peftplan.memory.workspaces.reductions import layer_norm_backward_sizes, softmax_backward_sizes
from peftplan.specs.formats import BOOL, FP16, FP32, DType
from peftplan.specs.tensors import Tensor, bytes_of

Grads = Sequence[Tensor | None]


def _layer_norm_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    x, weight, _bias, mean, rstd = saved
    wants_input, wants_weight, wants_bias = context
    read = bytes_of(g, x, mean, rstd)
    grad_x = t.like(x, "native_layer_norm_backward", read + bytes_of(weight)) if wants_input else None
    grad_w = t.like(weight, "native_layer_norm_backward", read) if wants_weight else None
    grad_b = None
    if wants_bias:
        grad_b = t.like(weight, "native_layer_norm_backward", WITH_LAST if wants_weight else read)
    if wants_weight or wants_bias:
        columns = x.shape[-1]
        sizes = layer_norm_backward_sizes(
            x.numel // columns, columns, x.dtype.itemsize, wants_weight + wants_bias, t.compute_capability
        )
        t.workspace("native_layer_norm_backward", *sizes)
    return (grad_x, grad_w, grad_b)


def _embedding_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    rows, width, num_indices = context
    table = t.new((rows, width), rows * width, g.dtype, "embedding_dense_backward", 0)  # zeros, and then the sums
    t.write("embedding_dense_backward", g.dtype, 2 * bytes_of(g) + 8 * num_indices, bytes_of(g))
    if num_indices > UNSORTED_INDICES:
        sizes = embedding_backward_sizes(num_indices, rows, width, g.dtype.itemsize, t.compute_capability)
        t.workspace("embedding_dense_backward", *sizes)
    return (table,)


def _dropout_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (t.like(g, "native_dropout_backward", bytes_of(g, saved[0])),)


def _cos_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    sine = t.like(saved[0], "sin")
    negative = t.like(sine, "neg")
    out = t.like(g, "mul", bytes_of(g, negative))
    del sine, negative
    return (out,)


def _sin_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    cosine = t.like(saved[0], "cos")
    return (t.like(g, "mul", bytes_of(g, cosine)),)


def _softmax_backward(t: Any, g: Tensor, saved: Any, dtype: DType) -> Grads:
    grad = t.new(g.shape, g.numel, dtype, "_softmax_backward_data", bytes_of(g, saved[0]))
    t.workspace("_softmax_backward_data", *softmax_backward_sizes(g.numel, g.dtype.itemsize))
    return (grad,)


class FunctionOps(ElementwiseOps):
    """Functions applied to whole tensors."""

    drops = True  # a style may turn dropout off

    def activation(self, x: Tensor, name: str) -> Tensor:
        """An activation function by its transformers name (ACT2FN); see `ACTIVATIONS`."""
        return ACTIVATIONS[name](self, x)  # type: ignore[no-any-return]

    def silu(self, x: Tensor) -> Tensor:
        """Saves its input."""
        return self.saving_input(x, "silu")

    def gelu(self, x: Tensor) -> Tensor:
        """The fused kernel, exact or tanh; saves its input."""
        return self.saving_input(x, "gelu")

    def tanh(self, x: Tensor) -> Tensor:
        """Saves its result."""
        node = self.link("TanhBackward0", unary_backward, (), (x.edge,), "tanh_backward")
        return self.saving_result(self.like(x, "tanh"), node)

    def exp(self, x: Tensor) -> Tensor:
        """Saves its result; autocast: in fp32."""
        if self.autocast is not None:
            x = self.to(x, FP32)
        node = self.link("ExpBackward0", unary_backward, (), (x.edge,), "mul")
        return self.saving_result(self.like(x, "exp"), node)

    def relu(self, x: Tensor) -> Tensor:
        """Saves its result."""
        node = self.link("ReluBackward0", unary_backward, (), (x.edge,), "threshold_backward")
        return self.saving_result(self.like(x, "relu"), node)

    def sigmoid(self, x: Tensor) -> Tensor:
        """Saves its result."""
        node = self.link("SigmoidBackward0", unary_backward, (), (x.edge,), "sigmoid_backward")
        return self.saving_result(self.like(x, "sigmoid"), node)

    def cos(self, x: Tensor) -> Tensor:
        """Saves its input."""
        node = self.link("CosBackward0", _cos_backward, (x,), (x.edge,))
        return self.attach(self.like(x, "cos"), node)

    def sin(self, x: Tensor) -> Tensor:
        """Saves its input."""
        node = self.link("SinBackward0", _sin_backward, (x,), (x.edge,))
        return self.attach(self.like(x, "sin"), node)

    def new_gelu(self, x: Tensor) -> Tensor:
        """GPT-2's tanh GELU written out in Python: 0.5 * x * (1 + tanh(c * (x + 0.044715 * x**3)))."""
        return self.mul(
            self.mul_scalar(x),
            self.add_scalar(self.tanh(self.mul_scalar(self.add(x, self.mul_scalar(self.pow(x)))))),
        )

    def fast_gelu(self, x: Tensor) -> Tensor:
        """Written out in Python: 0.5 * x * (1 + tanh(c * x * (1 + 0.044715 * x * x)))."""
        return self.mul(
            self.mul_scalar(x),
            self.add_scalar(
                self.tanh(self.mul(self.mul_scalar(x), self.add_scalar(self.mul(self.mul_scalar(x), x))))
            ),
        )

    def quick_gelu(self, x: Tensor) -> Tensor:
        """x * sigmoid(1.702 * x)."""
        return self.mul(x, self.sigmoid(self.mul_scalar(x)))

    def softmax(self, x: Tensor, dtype: DType | None = None) -> Tensor:
        """Softmax over the last dimension, in `dtype` (autocast: fp32); saves its result.

        Only fp16 is widened inside the kernel (ATen SoftMax.cpp, half_to_float): bf16 is cast first.
        """
        if dtype is None and self.autocast is not None:
            dtype = FP32
        if dtype is not None and x.dtype is not FP16:
            x = self.to(x, dtype)
        source = x.dtype
        node = self.link("SoftmaxBackward0", _softmax_backward, (), (x.edge,), source)
        out = self.new(x.shape, x.numel, dtype or source, "_softmax", bytes_of(x))
        return self.saving_result(out, node)

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """F.dropout in training on CUDA: a fused kernel that saves a one-byte mask."""
        if probability <= 0.0 or not self.training or not self.drops:
            return x
        node = self.link("NativeDropoutBackward0", _dropout_backward, (), (x.edge,))
        out = self.like(x, "native_dropout")
        mask = self.further(x.shape, x.numel, BOOL, "native_dropout mask")
        if node is not None:
            self.save(node, (mask,))
        return self.attach(out, node)

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """F.layer_norm: saves its input, weight, and the mean and reciprocal deviation of each row."""
        if self.autocast is not None:
            bias = self.to(bias, FP32) if bias is not None else None
            weight = self.to(weight, FP32) if weight is not None else None
            x = self.to(x, FP32)
        edges = (
            x.edge,
            weight.edge if weight is not None else None,
            bias.edge if bias is not None else None,
        )
        node = self.link(
            "NativeLayerNormBackward0",
            _layer_norm_backward,
            (x, weight, bias),
            edges,
            tuple(e is not None for e in edges),
        )
        out = self.like(x, "native_layer_norm", bytes_of(x, weight, bias))
        rows = prod(x.shape[:-1])
        mean = self.further((rows,), rows, FP32, "native_layer_norm mean")
        rstd = self.further((rows,), rows, FP32, "native_layer_norm rstd")
        if node is not None:
            self.save(node, (mean, rstd))
        return self.attach(out, node)

    def embedding(self, ids: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
        """Rows of a table, perhaps scaled; saves the ids, and its gradient is a whole table."""
        node = self.link(
            "EmbeddingBackward0",
            _embedding_backward,
            (ids,),
            (weight.edge,),
            (weight.shape[0], weight.shape[1], ids.numel),
        )
        shape = (*ids.shape, weight.shape[1])
        numel = prod(shape)
        read = numel * weight.dtype.itemsize + bytes_of(ids)
        out = self.attach(self.new(shape, numel, weight.dtype, "embedding", read), node)
        if scale is not None:
            out = self.mul(out, self.to(scale, weight.dtype))
        if ids is self.leaf_ids and node is None and self.grad_enabled:
            self.ask_gradient(out)
        return out


ACTIVATIONS: dict[str, Any] = {
    "silu": FunctionOps.silu,
    "swish": FunctionOps.silu,
    "gelu": FunctionOps.gelu,
    "gelu_pytorch_tanh": FunctionOps.gelu,
    "gelu_fast": FunctionOps.fast_gelu,
    "quick_gelu": FunctionOps.quick_gelu,
    "gelu_new": FunctionOps.new_gelu,
    "relu": FunctionOps.relu,
    "tanh": FunctionOps.tanh,
}
