"""Workspaces of the gradient of an embedding table."""

from __future__ import annotations

from peftplan.memory.workspaces.attention import TORCH, Version
from peftplan.memory.workspaces.device import Capability, multiprocessors
from peftplan.units import round_up

# Up to this many indices one kernel adds rows into the table; above it they are sorted first.
UNSORTED_INDICES = 3072
# Gradients that one warp adds up before its sum is written out.
_ROWS_PER_SUM = 10
# Blocks on each multiprocessor below which sums are added to the table atomically (torch 2.13).
_BLOCKS_PER_MULTIPROCESSOR = 4
_LARGEST_BLOCK = 1024
_INDEX = 8  # bytes


def embedding_backward_sizes(
    num_indices: int,
    num_rows: int,
    width: int,
    itemsize: int,
    capability: Capability,
    torch: Version = TORCH,
    processors: int | None = None,
) -> list[int]:
    """What is alive beside the [num_rows, width] gradient as rows are added up; `itemsize` is the gradient's.

    Sorted indices and where they stood, where each row's run begins, how many sums it takes and where they begin,
    two counters, and the sums in fp32: a tenth of the indices, and one more for every row that can occur. Small
    tables take an fp32 copy of themselves instead. The sort's own buffers are gone by then, and smaller.
    Source: torch-embedding (Embedding.cu, EmbeddingBackwardKernel.cu).
    """
    if num_indices <= UNSORTED_INDICES:
        return []
    segments = min(num_indices, num_rows)
    sums = num_indices // _ROWS_PER_SUM + segments
    sizes = [_INDEX * num_indices] * 3 + [_INDEX] + [_INDEX * segments] * 2 + [_INDEX, _INDEX * sums]
    threads = round_up(width, 32)
    blocks = -(-segments * threads // min(threads, _LARGEST_BLOCK))
    few = blocks < _BLOCKS_PER_MULTIPROCESSOR * (processors or multiprocessors(capability))
    if torch >= (2, 13) and few and sums > 4 * blocks:
        return [*sizes, _INDEX * sums, *([4 * num_rows * width] if itemsize < 4 else [])]
    return [*sizes, 4 * sums * width]
