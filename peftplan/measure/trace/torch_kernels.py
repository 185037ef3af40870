"""torch's own operations whose CUDA kernels take memory beside their results, by the table of workspaces.

The table is the closed form's (`memory/workspaces`), so that both say the same; where each entry comes from
stands there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from peftplan.memory.workspaces.attention import (
    backward_workspace_bytes,
    efficient_forward_sizes,
    flash_backward_sizes,
    flash_forward_sizes,
)
from peftplan.memory.workspaces.embedding import embedding_backward_sizes
from peftplan.memory.workspaces.reductions import (
    foreach_norm_sizes,
    layer_norm_backward_sizes,
    logsumexp_sizes,
    softmax_backward_sizes,
    sum_rows_sizes,
)

if TYPE_CHECKING:
    from peftplan.measure.trace.tracker import Kernel

aten = torch.ops.aten
Sizes = list[int]
Args = tuple[Any, ...]


def torch_kernels(capability: tuple[int, int]) -> dict[Any, Kernel]:
    """What answers for each operation on this GPU generation: the operation, then its buffers."""

    def flash_forward(args: Args, kwargs: dict[str, Any]) -> Sizes:
        query, key = args[0], args[1]
        dropout = args[3] if len(args) > 3 else kwargs.get("dropout_p", 0.0)
        batch, heads, length, dim = query.shape
        return flash_forward_sizes(batch, heads, length, key.shape[2], dim, capability, dropout > 0)

    def flash_backward(args: Args, _: dict[str, Any]) -> Sizes:
        query, key = args[1], args[2]
        batch, heads, length, dim = query.shape
        kv_heads, kv_length = key.shape[1], key.shape[2]
        return flash_backward_sizes(batch, heads, kv_heads, length, kv_length, dim, query.element_size())

    def efficient_forward(args: Args, _: dict[str, Any]) -> Sizes:
        query, value = args[0], args[2]
        batch, heads, length, dim = query.shape
        return efficient_forward_sizes(batch, heads, length, dim, value.shape[-1], _is_half(query))

    def efficient_backward(args: Args, _: dict[str, Any]) -> list[Sizes]:
        query, key, value = args[1], args[2], args[3]
        batch, heads, length, dim = query.shape
        rows = 4 * batch * heads * length
        width = max(dim, value.shape[-1])
        half = _is_half(query)
        size = backward_workspace_bytes(batch, heads, length, key.shape[2], width, half, capability)
        # the fp32 kernels are handed the row sums of gradient times output
        made_before = [] if half else [[4 * batch * heads * length * value.shape[-1], rows, rows]]
        return [*made_before, [rows, size]]

    def embedding_backward(args: Args, _: dict[str, Any]) -> Sizes:
        gradient, ids, num_rows = args[0], args[1], args[2]
        return embedding_backward_sizes(
            ids.numel(), num_rows, gradient.shape[-1], gradient.element_size(), capability
        )

    def layer_norm_backward(args: Args, kwargs: dict[str, Any]) -> Sizes:
        x, shape = args[1], args[2]
        wanted = args[7] if len(args) > 7 else kwargs["output_mask"]
        columns = torch.Size(shape).numel()
        return layer_norm_backward_sizes(
            x.numel() // columns, columns, x.element_size(), wanted[1] + wanted[2], capability
        )

    def sum_over_dims(args: Args, _: dict[str, Any]) -> Sizes:
        x, dims = args[0], args[1]
        if not x.is_floating_point() or not dims:
            return []
        leading = sorted(dim % x.dim() for dim in dims)
        if leading != list(range(len(leading))) or len(leading) == x.dim():
            return []  # along the last dimension, each result has a block to itself
        columns = torch.Size(x.shape[len(leading) :]).numel()
        return sum_rows_sizes(x.numel() // columns, columns, capability)

    def norms(args: Args, _: dict[str, Any]) -> Sizes:
        tensors = args[0]
        return foreach_norm_sizes(len(tensors), max((t.numel() for t in tensors), default=0))

    def safe_softmax(args: Args, _: dict[str, Any]) -> Sizes:
        # rows of which all is masked become zeros: which values are, which rows are, and the zero
        scores = args[0]
        return [scores.numel(), scores.numel() // scores.shape[-1], scores.element_size()]

    def softmax_backward(args: Args, _: dict[str, Any]) -> Sizes:
        return softmax_backward_sizes(args[0].numel(), args[0].element_size())

    def svd(args: Args, _: dict[str, Any]) -> Sizes:
        return [args[0].numel() * args[0].element_size()]  # a copy, which is overwritten

    def logsumexp(args: Args, _: dict[str, Any]) -> Sizes:
        x = args[0]
        return logsumexp_sizes(x.numel(), x.numel() // x.shape[-1], x.element_size())

    takes: dict[Any, Any] = {
        aten._linalg_svd.default: svd,
        aten.logsumexp.default: logsumexp,
        aten._scaled_dot_product_flash_attention.default: flash_forward,
        aten._scaled_dot_product_flash_attention_backward.default: flash_backward,
        aten._scaled_dot_product_efficient_attention.default: efficient_forward,
        aten._scaled_dot_product_efficient_attention_backward.default: efficient_backward,
        aten._safe_softmax.default: safe_softmax,
        aten._softmax_backward_data.default: softmax_backward,
        aten.embedding_dense_backward.default: embedding_backward,
        aten.native_layer_norm_backward.default: layer_norm_backward,
        aten.sum.dim_IntList: sum_over_dims,
        aten._foreach_norm.Scalar: norms,
    }
    # the memory-efficient kernel's random seed and offset are numbers on the host
    on_device = {aten._scaled_dot_product_efficient_attention.default: 2}
    return {func: _with_buffers(sizes, on_device.get(func)) for func, sizes in takes.items()}


def _with_buffers(sizes: Any, on_device: int | None) -> Kernel:
    """The operation, of whose results the first `on_device` are on the GPU, and then its buffers."""

    def run(tracker: Any, func: Any, args: Args, kwargs: dict[str, Any]) -> Any:
        if on_device is None:
            out = tracker.ordinary(func, args, kwargs)
        else:
            out = tracker.call(func, args, kwargs)
            tracker.see(out[:on_device], func)
        taken = sizes(args, kwargs)
        for together in taken if taken and isinstance(taken[0], list) else [taken]:
            tracker.buffers(together, func._name)
        return out

    return run


def _is_half(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16)
