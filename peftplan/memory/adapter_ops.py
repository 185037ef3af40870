"""Operations that adapters add to those of models: quotients, norms of weights, graphs that end with a function.

Sources: torch-derivatives, torch-autograd; torch/utils/checkpoint.py (a checkpointed region holds no tensors for
graph nodes, so that what only such a node keeps ends at once; run again, it does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

from peftplan.memory.graph import Backward, Node, Strided
from peftplan.memory.matrix import MatrixOps
from peftplan.specs.formats import BOOL, FP32, DType
from peftplan.specs.tensors import Tensor, bytes_of

Grads = Sequence[Tensor | None]


def _div_backward(t: Any, g: Tensor, saved: Any, context: bool) -> Grads:
    divisor, dividend = saved
    first = t.new(g.shape, g.numel, t.result_type(g, divisor), "div", bytes_of(g, divisor)) if context else None
    if dividend is None:
        return (first, None)
    ratio = t.like(g, "div", bytes_of(dividend, divisor))
    ratio = t.like(g, "div", bytes_of(ratio, divisor))
    negative = t.like(g, "neg")
    return (first, t.like(g, "mul", bytes_of(negative, ratio)))


def _filled_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    shape, numel = context
    return (t.new(shape, numel, g.dtype, "index"),)


def _index_copy_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    source = saved[1]
    return (t.new(source.shape, source.numel, g.dtype, "index_select"),)


def _inverse_fft_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    out = t.like(g, "_fft_c2c")
    return (t.part(out, context[0]),)


def _real_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    shape, numel = context
    return (t.new(shape, numel, g.dtype, "select_backward", bytes_of(g)),)


def _add_scaled_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (g, t.like(g, "mul"))


def _add_to_view_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    whole = t.like(g, "new_empty_strided")  # a copy of all of the gradient, into which the view's is copied back
    piece = t.like(g, "clone")
    t.write("copy_", g.dtype, bytes_of(piece), bytes_of(piece))
    return (whole, piece)


def _norm_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    x, norm = saved
    ratio = t.new(x.shape, x.numel, t.result_type(x, norm), "div", bytes_of(x, norm))
    zero = t.new(norm.shape, norm.numel, BOOL, "eq", bytes_of(norm))
    t.write("masked_fill_", ratio.dtype, bytes_of(ratio, zero), bytes_of(ratio))
    out = t.like(ratio, "mul", bytes_of(g, ratio))
    del ratio, zero
    return (out,)


def _qr_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    orthogonal, triangular = saved
    square, flop = triangular.shape, 2 * g.numel * g.shape[1]
    product = t.new(square, triangular.numel, g.dtype, "mm", bytes_of(orthogonal, g), flop)
    inner = t.like(product, "neg")
    del product
    upper = t.like(inner, "triu")
    both = t.like(upper, "add", 2 * bytes_of(upper))
    turned = t.new(g.shape, g.numel, g.dtype, "mm", bytes_of(orthogonal, both), flop)
    whole = t.like(g, "add", bytes_of(turned, g))
    del inner, upper, both, turned
    return (t.like(whole, "linalg_solve_triangular", bytes_of(whole, triangular)),)


def _scattered_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    return (t.like(g, "gather", bytes_of(g, saved[0])),)


def _repeat_backward(t: Any, g: Tensor, saved: Any, context: Any) -> Grads:
    shape, numel = context
    return (t.new(shape, numel, g.dtype, "sum", bytes_of(g)),)


class AdapterOps(MatrixOps):
    """What peft's layers compute beside matrix products."""

    @contextmanager
    def apart(self) -> Iterator[list[Any]]:
        """What runs inside has a graph of its own, which no gradient reaches and which ends with the list given."""
        kept, held = list[Node | str](), list[Tensor]()
        outer = self.nodes, self.grad_enabled, self.recording, self.held, self.held_bytes
        # a checkpoint's first pass saves nothing; run again, its graph does what any graph does
        self.nodes, self.grad_enabled, self.recording = kept, self.grad_enabled and self.frame is None, None
        self.held = held
        try:
            yield [kept, held]
        finally:
            self.nodes, self.grad_enabled, self.recording, self.held, self.held_bytes = outer

    def function(
        self,
        name: str,
        run: Callable[[Any], Tensor],
        backward: Backward,
        inputs: tuple[Tensor, ...],
        context: Any = None,
    ) -> Tensor:
        """An autograd function of Python: `run` outside the graph, gradients by `backward`; saves `inputs`."""
        node = self.link(name, backward, inputs, tuple(x.edge for x in inputs), context)
        with self.no_grad():
            out = run(self)
        return self.attach(out, node)

    @staticmethod
    def strided(grad: Tensor) -> Tensor:
        """A gradient that lies otherwise than the weight it belongs to."""
        return Strided(grad.shape, grad.numel, grad.dtype, grad.storage, None)

    def hooked(self, x: Tensor, backward: Backward, context: Any) -> Tensor:
        """A weight whose gradient a hook makes another of, before it is kept."""
        node = self.link("hook", backward, (), (x.edge,), context)
        return self.attach(Tensor(x.shape, x.numel, x.dtype, x.storage, None), node)

    def div(self, a: Tensor, b: Tensor) -> Tensor:
        """a / b; saves the divisor, and the dividend if the divisor wants a gradient."""
        saved = (b if a.edge is not None or b.edge is not None else None, a if b.edge is not None else None)
        node = self.link("DivBackward0", _div_backward, saved, (a.edge, b.edge), a.edge is not None)
        return self.attach(self.elementwise_result(a, b, "div"), node)

    def einsum(self, a: Tensor, b: Tensor, shape: tuple[int, ...]) -> Tensor:
        """torch.einsum of two that comes to one batched product: autocast casts what it is given, in order."""
        given = a, b
        if self.autocast is not None:
            a = self.autocast_to(a, self.autocast)
            b = self.autocast_to(b, self.autocast)
        out = self.matmul(a, b, shape)
        del given
        return out

    def scattered(self, x: Tensor, index: Tensor) -> Tensor:
        """zeros.scatter(-1, index, x): a copy of the zeros with x along its last dimension; saves the index."""
        zeros = self.like(x, "zeros", 0)
        node = self.link("ScatterBackward0", _scattered_backward, (index,), (x.edge,))
        out = self.like(x, "scatter", bytes_of(zeros, index, x))
        del zeros
        return self.attach(out, node)

    def repeated(self, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        """x.repeat up to `shape`: a copy; gradients are summed back."""
        node = self.link("RepeatBackward0", _repeat_backward, (), (x.edge,), (x.shape, x.numel))
        return self.attach(self.new(shape, prod(shape), x.dtype, "repeat", bytes_of(x)), node)

    def filled_from(self, values: Tensor, shape: tuple[int, ...], index: Tensor | None = None) -> Tensor:
        """Zeros of `shape` with values put at places that buffers hold, or an index that is saved."""
        return self.put_into(self.new(shape, prod(shape), values.dtype, "zeros", 0), values, index)

    def put_into(self, zeros: Tensor, values: Tensor, index: Tensor | None = None) -> Tensor:
        """Values put in place into what has no gradient: where buffers say, or an index that is saved."""
        context = values.shape, values.numel
        node = self.link("IndexPutBackward0", _filled_backward, (index,), (values.edge,), context)
        self.write("index_put_", values.dtype, 2 * bytes_of(values), bytes_of(values))
        return self.attach(Tensor(zeros.shape, zeros.numel, zeros.dtype, zeros.storage, None), node)

    def index_copy(self, x: Tensor, index: Tensor, source: Tensor) -> Tensor:
        """A copy of a frozen table with rows put into it; saves the index and, for its shape, the rows."""
        node = self.link("IndexCopyBackward0", _index_copy_backward, (index, source), (source.edge,))
        out = self.like(x, "index_copy")
        self.write("index_copy_", x.dtype, bytes_of(index, source), bytes_of(source))
        return self.attach(out, node)

    def inverse_fft_real(self, x: Tensor) -> Tensor:
        """The real part of a matrix's inverse transform, which is complex: a view of it."""
        node = self.link("FftC2CBackward0", _inverse_fft_backward, (), (x.edge,), (x.shape, x.numel))
        wide = self.new((*x.shape, 2), 2 * x.numel, x.dtype, "_to_copy", bytes_of(x))
        out = self.attach(self.new((*x.shape, 2), 2 * x.numel, x.dtype, "_fft_c2c"), node)
        del wide
        node = self.link("SelectBackward0", _real_backward, (), (out.edge,), (out.shape, out.numel))
        return self.attach(self.part(out, x.shape), node)

    def add_scaled_(self, a: Tensor, b: Tensor) -> Tensor:
        """a += alpha * b; saves nothing, and the gradient of b is scaled into a tensor of its own."""
        node = self.link("AddBackward0", _add_scaled_backward, (), (a.edge, b.edge))
        self.write("add_", a.dtype, bytes_of(a, b), bytes_of(a))
        return self.attach(Tensor(a.shape, a.numel, a.dtype, a.storage, None), node)

    def add_to_view(self, view: Tensor, b: Tensor) -> Tensor:
        """view += b, where the view shows all of what a product has made: gradients pass through two copies."""
        node = self.link("CopySlices", _add_to_view_backward, (), (view.edge, b.edge))
        self.write("add_", view.dtype, bytes_of(view, b), bytes_of(view))
        return self.attach(Tensor(view.shape, view.numel, view.dtype, view.storage, None), node)

    def qr(self, x: Tensor) -> Tensor:
        """The orthogonal factor of a matrix's QR decomposition; saves both. What its solver takes is not known."""
        node = self.link("LinalgQrBackward0", _qr_backward, (), (x.edge,))
        out = self.like(x, "linalg_qr")
        triangular = self.further((x.shape[1],) * 2, x.shape[1] ** 2, x.dtype, "linalg_qr")
        if node is not None:
            self.save(node, (out, triangular))
        del triangular
        return self.attach(Tensor(out.shape, out.numel, out.dtype, out.storage, None), node)

    def from_host(self, shape: tuple[int, ...], numel: int, dtype: DType) -> Tensor:
        """A tensor that the host holds, brought to the device."""
        return self.new(shape, numel, dtype, "_to_copy")

    def eye(self, size: int, dtype: DType) -> Tensor:
        """The identity matrix."""
        return self.new((size, size), size * size, dtype, "eye", 0)

    def row_norm(self, x: Tensor) -> Tensor:
        """The norm of each row of a matrix, outside the graph (autocast: in fp32)."""
        rows = x.shape[0]
        return self.new((rows,), rows, FP32 if self.autocast else x.dtype, "linalg_vector_norm", bytes_of(x))

    def norm(self, x: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """The norm of all of x, or of each of its rows or columns (autocast: in fp32); saves x and the norm."""
        node = self.link("LinalgVectorNormBackward0", _norm_backward, (x,), (x.edge,))
        dtype = FP32 if self.autocast else x.dtype
        return self.saving_result(self.new(shape, prod(shape), dtype, "linalg_vector_norm", bytes_of(x)), node)

    def dense_weight(self, linear: Any) -> Tensor:
        """The weight of a linear as peft's dequantize_module_weight gives it: itself, or unpacked."""
        weight = linear.weight
        if weight.quant is None:
            return weight  # type: ignore[no-any-return]
        return linear.unpacked(self)  # type: ignore[no-any-return]
