"""Workspaces of sorts, and of gradients that are put back by a sort of their indices."""

from __future__ import annotations

_INDEX = 8  # bytes
SMALL_SORT = 4096  # values that one block sorts in place


def radix_sort_bytes(count: int, key_bytes: int = _INDEX, value_bytes: int = _INDEX) -> int:
    """cub's radix sort of pairs that leaves its input alone: a second buffer of keys and of values.

    Assumes: nothing for histograms and look-back, below 3 % of it from some ten thousand pairs on.
    Source: torch-sort (cub-RadixSortPairs.cuh; CUB DeviceRadixSort).
    """
    return count * (key_bytes + value_bytes)


def sort_sizes(count: int) -> list[int]:
    """torch.sort of one row of `count` 64-bit integers: their numbers in order, and the sort's buffers.

    Source: torch-sort (SortStable.cu).
    """
    return [_INDEX * count, radix_sort_bytes(count)] if count > SMALL_SORT else []


def index_put_sizes(num_indices: int) -> list[int]:
    """x[index] += rows, the gradient of taking rows by index: sorted first, so that equal ones are adjacent.

    Linear, sorted and original indices, their numbers in order, and the sort's buffers.
    Source: torch-sort (Indexing.cu, index_put_with_sort_kernel).
    """
    return [_INDEX * num_indices] * 4 + [radix_sort_bytes(num_indices)]
