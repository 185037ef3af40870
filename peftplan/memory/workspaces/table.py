"""The table: which kernels take workspaces, when, by which function, and how that was checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peftplan.memory import overheads
from peftplan.memory.workspaces import attention, bitsandbytes, embedding, reductions, sorting


@dataclass(frozen=True, slots=True)
class Entry:
    """One kernel: `sizes` gives the bytes of its buffers, or is None where it takes none or nobody can say.

    `versions` are those of the library it was read in; `checked` is "read", "read in the binary" (constants of
    the released library), or "measured" with a date.
    """

    kernel: str
    condition: str
    sizes: Callable[..., Any] | None
    versions: str
    source: str
    checked: str = "read"


WORKSPACES: tuple[Entry, ...] = (
    # ---- attention
    Entry(
        "_flash_attention_backward",
        "16-bit inputs without a mask, heads of up to 256 values, compute capability 8.0 and later",
        attention.flash_backward_sizes,
        "torch 2.5, 2.8, 2.13; flash-attn 2.8",
        "torch-sdpa",
        "read, head widths in the binary",
    ),
    Entry(
        "_flash_attention_forward",
        "no dropout, and batch x heads x ceil(length / 64) below 1.6 x multiprocessors: keys are split",
        attention.flash_forward_sizes,
        "torch 2.13; flash-attn 2.8",
        "torch-sdpa",
    ),
    Entry(
        "_cudnn_attention_backward",
        "tried first on compute capability 9.x and 10.x with cuDNN above 9.15; a lower bound, since the size of "
        "the engine's own plan is not published",
        attention.cudnn_backward_sizes,
        "torch 2.13 with cuDNN 9.20",
        "cudnn-frontend",
        "read, the choice in the binary",
    ),
    Entry(
        "_efficient_attention_forward",
        "16-bit heads of more than 128 values",
        attention.efficient_forward_sizes,
        "torch 2.13",
        "torch-efficient-attention",
    ),
    Entry(
        "_efficient_attention_backward",
        "always, beside one fp32 number for each query row",
        attention.backward_workspace_bytes,
        "torch 2.13",
        "torch-efficient-attention",
    ),
    # ---- gradients of tables, biases and norms
    Entry(
        "embedding_dense_backward",
        "more than 3072 indices",
        embedding.embedding_backward_sizes,
        "torch 2.13; before it without the path for small tables",
        "torch-embedding",
        "read, kernels in the binary",
    ),
    Entry(
        "sum over rows (gradients of biases and of written-out norms)",
        "rows enough that blocks share a result: from 256 times a block's height on",
        reductions.sum_rows_sizes,
        "torch 2.5, 2.8, 2.13",
        "torch-reductions",
    ),
    Entry(
        "native_layer_norm_backward, _fused_rms_norm_backward",
        "more than 65536 rows of fewer than 16 values a multiprocessor",
        reductions.layer_norm_backward_sizes,
        "torch 2.13",
        "torch-layer-norm",
    ),
    Entry(
        "_foreach_norm, as clip_grad_norm_ calls it",
        "always",
        reductions.foreach_norm_sizes,
        "torch 2.13",
        "torch-foreach",
    ),
    # ---- sorts
    Entry("sort", "more than 4096 values in one row", sorting.sort_sizes, "torch 2.13", "torch-sort"),
    Entry("index_put_ with accumulation", "always", sorting.index_put_sizes, "torch 2.13", "torch-sort"),
    # ---- matrix products
    Entry(
        "cuBLAS and cuBLASLt",
        "one for each thread that multiplies (forward, backward), kept; cuBLASLt uses the same one",
        overheads.cublas_workspace_bytes,
        "torch 2.13; 2.5 and 2.8: 32 MiB on compute capability 9.x only",
        "cublas-workspace",
        "read in the binary",
    ),
    Entry(
        "gemm_4bit",
        "more rows than the fused kernel takes on this GPU, always above 1536",
        bitsandbytes.gemm_4bit_sizes,
        "bitsandbytes 0.50",
        "bnb-4bit",
    ),
    Entry(
        "dequantize_4bit",
        "weights with double quantisation",
        bitsandbytes.dequantize_4bit_sizes,
        "bitsandbytes 0.50",
        "bnb-4bit",
    ),
    Entry("int8_linear_matmul", "always", bitsandbytes.int8_product_sizes, "bitsandbytes 0.50", "bnb-int8"),
    Entry(
        "int8_vectorwise_quant",
        "a threshold for outliers, as the library sets",
        bitsandbytes.int8_quantise_sizes,
        "bitsandbytes 0.50",
        "bnb-int8",
    ),
    Entry(
        "_grouped_mm",
        "none on compute capability 8.x, where each group is a product of its own; on 9.x and 10.x pointers and "
        "tensor maps of well under 1 MiB, not counted",
        None,
        "torch 2.13",
        "torch-grouped-mm",
    ),
    Entry(
        "_softmax_backward_data",
        "always: the gradient times the result is a tensor of its own; log_softmax has none",
        reductions.softmax_backward_sizes,
        "torch 1.13 to 2.14",
        "torch-softmax",
        "read; published peaks of eager attention on a T4 agree to 0.1 % (fitcheck-t4)",
    ),
    # ---- none
    Entry(
        "softmax forward, log_softmax, nll_loss, dropout, layer norm forward, topk of a router",
        "none: everything stays in registers and shared memory",
        None,
        "torch 2.13",
        "torch-derivatives",
    ),
    Entry(
        "histc, cumsum of the counts of experts",
        "cub's buffers of a few hundred bytes, not counted",
        None,
        "torch 2.13",
        "torch-sort",
    ),
    Entry(
        "AdamW, SGD: foreach and fused kernels",
        "none beside the foreach results",
        None,
        "torch 2.13",
        "torch-foreach",
    ),
    Entry(
        "8-bit, paged and 32-bit optimizers",
        "none: states are updated in place",
        None,
        "bitsandbytes 0.50",
        "bnb-optimizers",
    ),
)
