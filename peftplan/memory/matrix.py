"""Matrix products: dense, batched, 4-bit and 8-bit.

Sources: torch 2.13 derivatives.yaml (mm, addmm, bmm); bitsandbytes 0.50 `autograd/_functions.py`
(MatMul4Bit, MatMul8bitLt), `functional.dequantize_4bit` and the CUDA kernel behind `gemm_4bit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from peftplan.memory.functions import FunctionOps
from peftplan.memory.workspaces.bitsandbytes import multiplies_packed
from peftplan.specs.formats import FP16, FP32, INT8, DType, QuantFormat
from peftplan.specs.tensors import Parameter, Tensor, bytes_of

Grads = Sequence[Tensor | None]


def _linear_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    x, weight, _ = saved
    x_shape, x_numel, weight_shape, weight_numel, has_bias = context
    num_flop, size = 2 * x_numel * weight_shape[0], g.dtype.itemsize
    grad_x = grad_w = None
    if x is not None:  # that of the second factor comes first
        grad_w = t.new(weight_shape, weight_numel, g.dtype, "mm.t", (g.numel + x_numel) * size, num_flop)
    if weight is not None:
        grad_x = t.new(x_shape, x_numel, g.dtype, "mm", (g.numel + weight_numel) * size, num_flop)
    return (grad_x, grad_w, g if has_bias else None)


def _bmm_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    a, b = saved
    a_shape, a_numel, b_shape, b_numel = context
    num_flop = 2 * g.numel * a_shape[-1]
    grad_b = t.new(b_shape, b_numel, g.dtype, "bmm", bytes_of(g, a), num_flop) if a is not None else None
    grad_a = t.new(a_shape, a_numel, g.dtype, "bmm", bytes_of(g, b), num_flop) if b is not None else None
    return (grad_a, grad_b)


def _linear_4bit_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    weight, x_shape, x_numel, x_wants, has_bias = context
    grad_bias = t.sum_to(g, weight.shape[0]) if has_bias else None
    if not x_wants:
        return (None, grad_bias)
    dense = t.dequantize_4bit(weight)
    if dense.dtype is not g.dtype:
        dense = t.cast(dense, g.dtype)
    read, num_flop = (g.numel + weight.numel) * g.dtype.itemsize, 2 * x_numel * weight.shape[0]
    return (t.new(x_shape, x_numel, g.dtype, "matmul", read, num_flop), grad_bias)


def _linear_8bit_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    weight, x_shape, x_numel, x_dtype, has_bias = context
    grad_bias = t.sum_to(g, weight.shape[0]) if has_bias else None
    rows = weight.shape[0]
    dense = t.new(weight.shape, weight.numel, x_dtype, "int8 weight dequantised", weight.numel)
    scaled = t.new((rows,), rows, FP32, "mul")
    dense_bytes = weight.numel * x_dtype.itemsize
    t.write("int8 weight dequantised", x_dtype, dense_bytes + 4 * rows, dense_bytes)  # by the scales, in place
    del scaled
    cast = t.cast(g, x_dtype) if g.dtype is not x_dtype else g
    read = (g.numel + weight.numel) * x_dtype.itemsize
    out = t.new(x_shape, x_numel, x_dtype, "mm", read, 2 * x_numel * rows)
    del dense, cast
    return (out, grad_bias)


def _packed_linear_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    how, weight, x_shape, x_numel, x_wants, bias_wants = context
    grad_bias = t.sum_to(g, weight.shape[0]) if bias_wants else None
    return (how.gradient(t, g, weight, x_shape, x_numel) if x_wants else None, grad_bias)


class MatrixOps(FunctionOps):
    """Linear layers in every storage format, and batched products."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """F.linear with a [out, in] weight: saves the input and the weight, each if the other trains."""
        autocast = self.autocast
        if autocast is not None:  # arguments are cast from the last to the first
            bias = self.autocast_to(bias, autocast) if bias is not None else None
            weight = self.autocast_to(weight, autocast)
            x = self.autocast_to(x, autocast)
        x_edge, w_edge = x.edge, weight.edge
        b_edge = bias.edge if bias is not None else None
        node = self.link(
            "MmBackward0",
            _linear_backward,
            (x if w_edge is not None else None, weight if x_edge is not None else None, None),
            (x_edge, w_edge, b_edge),
            (x.shape, x.numel, weight.shape, weight.numel, b_edge is not None),
        )
        rows = weight.shape[0]
        numel = x.numel // x.shape[-1] * rows
        read = (x.numel + weight.numel + (rows if bias is not None else 0)) * x.dtype.itemsize
        out = self.new((*x.shape[:-1], rows), numel, x.dtype, "mm", read, 2 * x.numel * rows)
        return self.attach(out, node)

    def matmul(
        self,
        a: Tensor,
        b: Tensor,
        shape: tuple[int, ...],
        copied: tuple[bool, bool] = (False, False),
        back: bool = True,
    ) -> Tensor:
        """A batched product of result `shape`; saves both factors as each other's gradient needs.

        `copied` marks factors laid out token by token: with more than one sequence they are made
        contiguous first, and those copies are what is saved; `back`: their gradients are copied too.
        """
        held: tuple[Tensor, ...] = ()
        if self.autocast is not None:
            b = self.autocast_to(b, self.autocast)
            a = self.autocast_to(a, self.autocast)
            held = a, b  # by what casts, until the product is there
        if len(shape) == 4 and b.shape[1] != shape[1]:
            b = self.spread(b, shape[1])
        if shape[0] > 1:
            relaid = self.relaid if back else self.contiguous
            a = relaid(a) if copied[0] else a
            b = relaid(b) if copied[1] else b
        node = self.link(
            "BmmBackward0",
            _bmm_backward,
            (a if b.edge is not None else None, b if a.edge is not None else None),
            (a.edge, b.edge),
            (a.shape, a.numel, b.shape, b.numel),
        )
        numel = prod(shape)
        out = self.new(shape, numel, a.dtype, "bmm", bytes_of(a, b), 2 * numel * a.shape[-1])
        del held
        return self.attach(out, node)

    def spread(self, x: Tensor, heads: int) -> Tensor:
        """One head that a product hands to all: a copy for each where there are several sequences, else a view."""
        shape = (x.shape[0], heads, *x.shape[2:])
        return self.expand_copy(x, shape) if shape[0] > 1 else self.expand(x, shape)

    # ---- packed weights
    def packed_linear(self, x: Tensor, weight: Parameter, bias: Tensor | None, how: Any) -> Tensor:
        """A linear whose weight a quantiser keeps, as an autograd function: `how` has its two passes.

        `how.product(t, x, weight, bias)` computes x @ W.T + bias outside the graph, `how.gradient(t, g, weight,
        shape, numel)` the gradient of x; with `how.saves_input` the function saves x although nothing reads it.
        """
        node = self.link(
            how.name,
            _packed_linear_backward,
            (),
            (x.edge, bias.edge if bias is not None else None),
            (how, weight, x.shape, x.numel, x.edge is not None, bias is not None and bias.edge is not None),
        )
        with self.no_grad():
            out = how.product(self, x, weight, bias)
        if node is not None:  # a function of Python saves once its forward pass is done
            self.save(node, (x, weight) if how.saves_input else (weight,))
        return self.attach(out, node)

    # ---- bitsandbytes
    def dequantize_4bit(self, weight: Parameter) -> Tensor:
        """The dense weight, in the type it was quantised from; with double quantisation its absmax first."""
        assert isinstance(weight.quant, QuantFormat)
        absmax = None
        blocks = -(-weight.numel // weight.quant.block_size)
        if weight.quant.double_quant:
            absmax = self.new((blocks,), blocks, FP32, "dequantize_blockwise", blocks)
            self.write("add_", FP32, 4 * blocks, 4 * blocks)  # the offset of the scales
        read = (weight.numel + 1) // 2 + 4 * blocks
        out = self.new(weight.shape, weight.numel, weight.dtype, "dequantize_4bit", read)
        del absmax
        return out

    def linear_4bit(self, x: Tensor, weight: Parameter, bias: Tensor | None, compute_dtype: DType) -> Tensor:
        """bnb.nn.Linear4bit: computes in `compute_dtype` and returns the input's type; saves no activation."""
        source = x.dtype
        if self.behaviour.computes_in_input_type and source is not FP16:
            compute_dtype = source
        if bias.__class__ is Parameter and not self.behaviour.fused_4bit:
            bias.set_dtype(source)  # in place, by the first pass  # type: ignore[union-attr]
        x = self.to(x, compute_dtype)
        if bias is not None:
            bias = self.to(bias, compute_dtype)
        node = self.link(
            "MatMul4BitBackward",
            _linear_4bit_backward,
            (),
            (x.edge, bias.edge if bias is not None else None),
            (
                weight,
                x.shape,
                x.numel,
                x.edge is not None,
                bias is not None and bias.edge is not None,
            ),
        )
        rows = x.numel // x.shape[-1]
        shape = (*x.shape[:-1], weight.shape[0])
        numel = rows * weight.shape[0]
        assert isinstance(weight.quant, QuantFormat)
        outputs, inputs = weight.shape
        if not self.behaviour.fused_4bit:
            out = self._unpacked_product(x, weight, shape, numel)
            if node is not None and self.behaviour.keeps_4bit_input:
                self.hold(x)
            return self.to(self.attach(out, node), source)
        block_size, capability = weight.quant.block_size, self.compute_capability
        size, num_flop = compute_dtype.itemsize, 2 * rows * weight.numel
        read = (x.numel + (outputs if bias is not None else 0)) * size
        if multiplies_packed(rows, outputs, inputs, compute_dtype.short, block_size, capability):
            read += sum(kept for _, kept in weight.storages())
            out = self.new(shape, numel, compute_dtype, "gemm_4bit packed", read, num_flop)
        else:
            out = self._gemm_4bit_dequantising(weight, shape, numel, compute_dtype, read, num_flop)
        return self.to(self.attach(out, node), source)

    def _unpacked_product(self, x: Tensor, weight: Parameter, shape: tuple[int, ...], numel: int) -> Tensor:
        """F.linear of the unpacked weight in the input's type, inside an autograd function; autocast casts both."""
        dense = self.dequantize_4bit(weight)
        dense = self.to_detached(dense, x.dtype)
        dtype = self.autocast or x.dtype
        narrow = self.to_detached(dense, dtype), self.to_detached(x, dtype)
        read = (x.numel + weight.numel) * dtype.itemsize
        out = self.new(shape, numel, dtype, "linear", read, 2 * x.numel * weight.shape[0])
        del narrow, dense
        return out

    def _gemm_4bit_dequantising(
        self, weight: Parameter, shape: tuple[int, ...], numel: int, dtype: DType, read: int, num_flop: int
    ) -> Tensor:
        quant = weight.quant
        assert isinstance(quant, QuantFormat)
        first = second = None
        blocks = -(-weight.numel // quant.block_size)
        if quant.double_quant:
            first = self.new((blocks,), blocks, FP32, "gemm_4bit absmax", blocks)
            second = self.new((blocks,), blocks, FP32, "gemm_4bit absmax")
        packed = (weight.numel + 1) // 2 + 4 * blocks
        dense = self.new(weight.shape, weight.numel, dtype, "gemm_4bit dequantised weight", packed)
        read += weight.numel * dtype.itemsize
        out = self.new(shape, numel, dtype, "gemm_4bit", read, num_flop)
        del first, second, dense
        return out

    def linear_8bit(self, x: Tensor, weight: Parameter, bias: Tensor | None) -> Tensor:
        """bnb.nn.Linear8bitLt with frozen int8 weights.

        The graph node itself keeps the input until the loss goes: the autograd function stores it as
        an attribute, which neither saved-tensor hooks nor the engine's release reaches.
        """
        rows = x.numel // x.shape[-1]
        node = self.link(
            "MatMul8bitLtBackward",
            _linear_8bit_backward,
            (),
            (x.edge, bias.edge if bias is not None else None),
            (weight, x.shape, x.numel, x.dtype, bias is not None and bias.edge is not None),
        )
        half = self.to_detached(x, FP16)
        row_stats = self.new((rows,), rows, FP32, "int8_vectorwise_quant", bytes_of(half))
        quantised = self.further(x.shape, x.numel, INT8, "int8_vectorwise_quant")
        magnitudes = self.new(x.shape, x.numel, FP16, "abs")
        outliers = self.new(x.shape, x.numel, INT8, "ge", bytes_of(magnitudes))
        del magnitudes, outliers, half
        outputs = weight.shape[0]
        numel = rows * outputs
        accumulated = self.new(
            (rows, outputs), numel, FP32, "int8_linear_matmul", x.numel + weight.numel, 2 * x.numel * outputs
        )
        read = 4 * (numel + rows + outputs)
        result = self.new((*x.shape[:-1], outputs), numel, FP16, "int8_mm_dequant", read)
        out = result if x.dtype is FP16 else self.cast(result, x.dtype)
        del accumulated, result, row_stats, quantised
        if node is not None and x.edge is not None:
            self.hold(x)
        return self.attach(out, node)

    def to_detached(self, x: Tensor, dtype: DType) -> Tensor:
        """`x.to(dtype)` outside the graph."""
        return x if x.dtype is dtype else self.cast(x, dtype)

    def hold(self, x: Tensor) -> None:
        """Keep a tensor as an attribute of the graph: until the loss goes, or a recomputed graph ends."""
        fresh = not self.again and all(h.storage is not x.storage for h in self.held[-8:])
        if fresh and x.storage is not None:
            self.held_bytes += x.storage.record.size
        self.held.append(Tensor(x.shape, x.numel, x.dtype, x.storage, None))
