"""Workspaces of CUDA kernels, against numbers worked out by hand from the kernels' sources."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan import Request, estimate
from peftplan.memory.overheads import cublas_workspace_bytes
from peftplan.memory.player import Player
from peftplan.memory.workspaces.attention import (
    cudnn_backward_sizes,
    efficient_forward_sizes,
    flash_backward_sizes,
    flash_forward_sizes,
    flash_head_width,
    flash_splits,
    flash_varlen_backward_sizes,
    prefers_cudnn,
)
from peftplan.memory.workspaces.bitsandbytes import (
    dequantize_4bit_sizes,
    gemm_4bit_sizes,
    int8_product_sizes,
    int8_quantise_sizes,
    multiplies_packed,
)
from peftplan.memory.workspaces.embedding import embedding_backward_sizes
from peftplan.memory.workspaces.reductions import (
    foreach_norm_sizes,
    layer_norm_backward_sizes,
    sum_rows_sizes,
)
from peftplan.memory.workspaces.sorting import index_put_sizes, sort_sizes
from peftplan.memory.workspaces.table import WORKSPACES
from peftplan.sources import SOURCES
from peftplan.specs.formats import BF16, INT64
from peftplan.specs.tensors import Parameter, Tensor
from peftplan.units import MIB

A100, H100, T4 = (8, 0), (9, 0), (7, 5)

# ---- attention


def test_flash_backward_without_groups() -> None:
    """Row sums and the queries' gradient, both in fp32, of a length rounded up to 128."""
    assert flash_backward_sizes(2, 32, 32, 1000, 1000, 128) == [4 * 2 * 32 * 1024, 4 * 2 * 1024 * 32 * 128]


def test_flash_backward_with_groups() -> None:
    """Keys and values of fewer heads get gradients of all heads first, in the inputs' type and unrounded."""
    *_, dk, dv = flash_backward_sizes(1, 32, 8, 1000, 1000, 128)
    assert dk == dv == 1000 * 32 * 128 * 2


def test_flash_backward_deterministic() -> None:
    """One accumulator for each split: 108 processors over 32 heads make four."""
    plain, split = (flash_backward_sizes(1, 32, 32, 4096, 4096, 128, deterministic_on=n)[1] for n in (0, 108))
    assert split == 4 * plain


@pytest.mark.parametrize(
    ("dim", "torch", "width"),
    [
        (72, (2, 13), 96),
        (128, (2, 13), 128),
        (160, (2, 13), 192),
        (224, (2, 13), 256),
        (160, (2, 8), 160),
        (200, (2, 8), 256),
        (200, (2, 5), 224),
    ],
)
def test_flash_head_widths(dim: int, torch: tuple[int, int], width: int) -> None:
    """Heads are padded to 32, from some width on to 64 or 256: which depends on torch's version."""
    assert flash_head_width(dim, torch) == width


def test_flash_of_unpadded_sequences() -> None:
    """128 rows more for each sequence, of the tokens that there are."""
    sizes = flash_varlen_backward_sizes(3000, 2, 16, 4, 64)
    assert sizes == [4 * 16 * 3256, 4 * 3256 * 16 * 64, 3000 * 16 * 64 * 2, 3000 * 16 * 64 * 2]


@pytest.mark.parametrize(
    ("blocks", "key_blocks", "processors", "pieces"),
    [
        (173, 32, 216, 1),  # four fifths of the processors are busy
        (128, 32, 216, 3),  # shares 0.59, 0.59, 0.89, ..., at best 0.99 in five pieces
        (8, 2, 216, 2),  # no more pieces than blocks of keys
    ],
)
def test_flash_splits_keys_where_queries_are_few(
    blocks: int, key_blocks: int, processors: int, pieces: int
) -> None:
    """The fewest pieces that keep nearly as many processors busy as any number would."""
    assert flash_splits(blocks, key_blocks, processors) == pieces


def test_flash_forward_of_few_heads() -> None:
    """Four heads of 256 values over 2048 tokens are three pieces, each with rows and outputs in fp32."""
    rows = 3 * 4 * 2048
    assert flash_forward_sizes(1, 4, 2048, 2048, 256, A100) == [4 * rows, 4 * rows * 256]


@pytest.mark.parametrize(("heads", "dropout"), [(32, False), (4, True)])
def test_flash_forward_seldom_splits(heads: int, dropout: bool) -> None:
    """Many heads keep the GPU busy, and dropout has no such kernel: no workspace."""
    assert flash_forward_sizes(1, heads, 2048, 2048, 128, A100, dropout) == []


def test_cudnn_backward() -> None:
    """Hopper and data-centre Blackwell try cuDNN first: one block of row sums and the queries' gradient in fp32."""
    assert prefers_cudnn(H100)
    assert not prefers_cudnn(A100)
    assert not prefers_cudnn(H100, (2, 8))
    rows = 2 * 16 * 512
    assert cudnn_backward_sizes(2, 16, 512, 128) == [4 * rows + 4 * rows * 128]


def test_efficient_forward_of_wide_heads() -> None:
    """Only 16-bit heads of more than 128 values add up in memory."""
    assert efficient_forward_sizes(2, 8, 100, 256, 256, True) == [4 * 2 * 8 * 100 * 256]
    assert efficient_forward_sizes(2, 8, 100, 128, 128, True) == []
    assert efficient_forward_sizes(2, 8, 100, 256, 256, False) == []


# ---- gradients of tables, biases and norms


def test_embedding_backward_sorts_above_3072_indices() -> None:
    """Up to 3072 indices nothing; above, index arrays and fp32 sums: a tenth of the indices and one a row."""
    assert embedding_backward_sizes(3072, 128256, 4096, 2, A100) == []
    sums = 409 + 4096
    indices = [8 * 4096] * 3 + [8] + [8 * 4096] * 2 + [8, 8 * sums]
    assert embedding_backward_sizes(4096, 128256, 4096, 2, A100) == [*indices, 4 * sums * 4096]


def test_embedding_backward_has_at_most_the_tables_rows() -> None:
    """A table of fewer rows than there are indices bounds the sums."""
    assert embedding_backward_sizes(8192, 2050, 768, 2, A100)[-1] == 4 * (819 + 2050) * 768


@pytest.mark.parametrize(("itemsize", "copies"), [(2, [4 * 2 * 768]), (4, [])])
def test_embedding_backward_of_a_small_table(itemsize: int, copies: list[int]) -> None:
    """Two rows take atomic sums: into an fp32 copy of a 16-bit table, into an fp32 table itself."""
    sums = 819 + 2
    indices = [8 * 8192] * 3 + [8, 16, 16, 8, 8 * sums, 8 * sums]
    assert embedding_backward_sizes(8192, 2, 768, itemsize, A100) == [*indices, *copies]
    assert embedding_backward_sizes(8192, 2, 768, itemsize, A100, torch=(2, 8))[-1] == 4 * sums * 768


@pytest.mark.parametrize(
    ("columns", "capability", "sizes"),
    [
        # 32 blocks of 32 x 4 threads with 4 columns each; 54 share a result to fill 108 x 16 blocks
        (4096, A100, [4 * 4096 * 54 * 128, 4 * 32]),
        # 2302 takes pairs of columns: blocks of 32 x 8 threads, 36 of them, 24 share a result
        (2302, A100, [4 * 2302 * 24 * 64, 4 * 36]),
        # a T4 holds 40 x 8 blocks
        (4096, T4, [4 * 4096 * 10 * 128, 4 * 32]),
    ],
)
def test_sum_over_rows(columns: int, capability: tuple[int, int], sizes: list[int]) -> None:
    """8192 rows: the buffer is the shared sums times the columns of one block, however many it uses."""
    assert sum_rows_sizes(8192, columns, capability) == sizes


@pytest.mark.parametrize(("rows", "columns"), [(255, 4096), (1020, 4096), (8192, 1), (8192, 4 * 32 * 1729)])
def test_sum_over_rows_in_single_blocks(rows: int, columns: int) -> None:
    """Few rows for a thread, a single column, or columns enough to fill the GPU: no shared result."""
    assert sum_rows_sizes(rows, columns, A100) == []


def test_layer_norm_backward_of_very_many_rows() -> None:
    """Above 65536 rows of 768 values, 1365 partial gradients of weight and of bias, and the sum over them."""
    assert layer_norm_backward_sizes(65536, 768, 2, 2, A100) == []
    assert layer_norm_backward_sizes(131072, 4096, 2, 2, A100) == []
    partial = 32768 // 24
    sums = sum_rows_sizes(partial, 768, A100)
    assert layer_norm_backward_sizes(131072, 768, 2, 2, A100) == [partial * 768 * 2] * 2 + sums


def test_foreach_norm() -> None:
    """As many partial sums for every tensor as the largest has chunks of 65536 elements."""
    assert foreach_norm_sizes(291, 128256 * 4096) == [4 * 291 * 8016]
    assert foreach_norm_sizes(0, 0) == []


# ---- sorts


def test_sorts() -> None:
    """Up to 4096 values sort in place; more take numbers in order and a second buffer of keys and values."""
    assert sort_sizes(4096) == []
    assert sort_sizes(8192) == [8 * 8192, 16 * 8192]
    assert index_put_sizes(1000) == [8000, 8000, 8000, 8000, 16000]


# ---- matrix products


@pytest.mark.parametrize(
    ("capability", "size"),
    [((8, 0), 8_519_680), ((8, 9), 8_519_680), ((9, 0), 32 * MIB), ((10, 0), 32 * MIB), ((12, 0), 32 * MIB)],
)
def test_cublas_workspaces(capability: tuple[int, int], size: int) -> None:
    """Hopper and Blackwell take 32 MiB, others 8320 KiB."""
    assert cublas_workspace_bytes(capability) == size


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "dtype", "capability", "packed"),
    [
        (4, 4096, 4096, "bf16", H100, True),
        (1537, 4096, 64, "bf16", A100, False),
        (4, 4096, 100, "bf16", A100, False),  # the weight's rows are not whole blocks
        (513, 4096, 4096, "bf16", A100, False),  # a large weight
        (1536, 512, 128, "bf16", A100, True),  # a small and flat one
        (128, 14336, 4096, "bf16", A100, False),
        (64, 14336, 4096, "bf16", A100, True),
        (8, 4096, 4096, "fp32", A100, False),
        (16, 4096, 4096, "bf16", T4, False),  # no 16-bit products but fp16's
        (16, 4096, 4096, "fp16", T4, True),
        (16, 4096, 4096, "bf16", (10, 0), False),
        (128, 14336, 4096, "bf16", (8, 9), True),
    ],
)
def test_which_4bit_products_are_fused(
    rows: int, outputs: int, inputs: int, dtype: str, capability: tuple[int, int], packed: bool
) -> None:
    """Few rows are multiplied as they are packed; how few depends on the weight and the GPU."""
    assert multiplies_packed(rows, outputs, inputs, dtype, 64, capability) is packed


def test_4bit_buffers() -> None:
    """A dense weight; with double quantisation block scales too, twice in the product, once in backward."""
    scales, dense = 4 * 4096 * 11008 // 64, 4096 * 11008 * 2
    assert gemm_4bit_sizes(4096, 11008, 64, 2, True) == [scales, scales, dense]
    assert gemm_4bit_sizes(4096, 11008, 64, 2, False) == [dense]
    assert dequantize_4bit_sizes(4096 * 11008, 64, True) == [scales]
    assert dequantize_4bit_sizes(4096 * 11008, 64, False) == []


def test_int8_buffers() -> None:
    """Integer sums of a product; magnitudes in fp16 and a byte each where outliers are looked for."""
    assert int8_product_sizes(100, 4096) == [4 * 100 * 4096]
    assert int8_quantise_sizes(1000) == [2000, 1000]
    assert int8_quantise_sizes(1000, threshold=0.0) == []


# ---- the tape takes them


def taken(t: Player, op: str) -> list[int]:
    return [record.nbytes for record in t.records if record.op == op + " workspace"]


def table_gradient(num_indices: int) -> Player:
    t = Player()
    ids = t.new((1, num_indices), num_indices, INT64, "ids")
    t.start_backward(t.embedding(ids, Parameter((32000, 64), BF16)))
    return t


def test_the_gradient_of_a_table_takes_its_workspace() -> None:
    """Backward of an embedding allocates what the sort leaves, above 3072 indices."""
    assert taken(table_gradient(3072), "embedding_dense_backward") == []
    assert taken(table_gradient(4096), "embedding_dense_backward") == embedding_backward_sizes(
        4096, 32000, 64, 2, A100
    )


def scaled(weight: Tensor, rows: int, width: int) -> Player:
    t = Player()
    out = t.mul(Parameter((rows, width), BF16), weight)
    assert out.edge is not None
    out.edge[0].grad = t.like(out, "gradient")
    t.backward()
    return t


def test_gradients_of_rows_take_a_shared_buffer() -> None:
    """The gradient of a norm's weight is summed over rows with a buffer, that of a row's scale without."""
    weight, scale = Parameter((4096,), BF16), Parameter((4096, 1), BF16)
    assert taken(scaled(weight, 4096, 4096), "sum") == sum_rows_sizes(4096, 4096, A100)
    assert taken(scaled(scale, 4096, 4096), "sum") == []


def test_clipping_is_a_part_of_its_own() -> None:
    """Where clipping holds more than the update, the peak's parts name it."""
    request: dict[str, Any] = {"method": "full", "optimizer": "sgd", "loop": "trainer", "seq_len": 16}
    memory = estimate(Request(model="gpt2", **request)).memory
    plain = estimate(Request(model="gpt2", **{**request, "loop": "plain"})).memory
    assert memory.moments["optimizer_step"] > plain.moments["optimizer_step"]
    assert sum(node.bytes for node in memory.breakdown.children) == memory.peak_allocated_bytes


# ---- the table


def test_every_entry_says_where_it_is_from() -> None:
    """An entry names a condition, a library's version, a source that exists, and how it was checked."""
    for entry in WORKSPACES:
        assert entry.kernel
        assert entry.condition
        assert any(digit.isdigit() for digit in entry.versions)
        assert entry.source in SOURCES
        assert entry.checked.startswith(("read", "measured 20"))
