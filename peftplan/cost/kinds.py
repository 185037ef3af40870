"""What kind of kernel an operation of the tape is, by the name it goes by there."""

from __future__ import annotations

ATTENTION = frozenset(
    {
        "_flash_attention_forward",
        "_flash_attention_backward",
        "_flash_attn_varlen_forward",
        "_flash_attn_varlen_backward",
        "_efficient_attention_forward",
        "_efficient_attention_backward",
    }
)
# Those that read what is packed; the product that follows an unpacking is a matmul like any other.
DEQUANTISE = frozenset(
    {
        "dequantize_blockwise",
        "dequantize_4bit",
        "gemm_4bit absmax",
        "gemm_4bit dequantised weight",
        "gemm_4bit packed",
        "int8 weight dequantised",
        "int8_vectorwise_dequant",
    }
)
REDUCTION = frozenset(
    {
        "_log_softmax",
        "_log_softmax_backward_data",
        "_softmax",
        "_softmax_backward_data",
        "all",
        "any",
        "cumsum",
        "histc",
        "int8_vectorwise_quant",
        "linalg_vector_norm",
        "liger_cross_entropy",
        "max",
        "mean",
        "native_layer_norm",
        "native_layer_norm_backward",
        "nll_loss_forward",
        "sort",
        "sum",
        "topk",
    }
)
GATHER = frozenset(
    {
        "embedding",
        "embedding_dense_backward",
        "coalesce",
        "gather",
        "index",
        "index_add_",
        "index_put_",
        "index_select",
        "nll_loss_backward",
        "nonzero",
        "scatter",
        "scatter_add",
        "sparse_mask",
    }
)
# Fills: they read nothing.
IS_FILL = frozenset({"arange", "empty_like", "eye", "full", "new_empty", "new_zeros", "ones", "ones_like", "zeros"})
# Types that the result does not tell.
LABELS = {"int8_linear_matmul": "int8"}


def kind_of(op: str, num_flop: int) -> str:
    """One of `specs.work.KINDS`."""
    if op in ATTENTION:
        return "attention"
    if op in DEQUANTISE:
        return "dequantise"
    if num_flop:
        return "matmul"
    if op in REDUCTION:
        return "reduction"
    return "gather" if op in GATHER else "elementwise"
