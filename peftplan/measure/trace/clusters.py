"""AdaMSS without values: a layer's outputs, which it clusters by what it finds in the weights, in even clusters."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

NOTE = "AdaMSS clusters outputs by their weights, and a trace has none: the clusters are taken as equally large"


def leading_directions(
    tensor: torch.Tensor, rank: int, device: Any, dtype: torch.dtype, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """What peft's slice_pca gives: right and left singular vectors of a matrix, without values."""
    *outer, rows, columns = tensor.shape
    rank = min(rank, rows, columns)
    return tensor.new_empty((*outer, rank, columns)), tensor.new_empty((*outer, rows, rank))


def even_clusters(vectors: torch.Tensor, number: int, _iterations: int) -> tuple[torch.Tensor, int]:
    """What peft's clustering_Z gives: a cluster for each row, and how many there are."""
    rows = vectors.shape[0]
    number = min(number, rows)
    return torch.arange(rows, device="cpu") % number, number


@contextmanager
def without_scikit_learn() -> Iterator[None]:
    """peft's config asks whether scikit-learn is there, which nothing here calls."""
    lacks = find_spec("sklearn") is None
    if lacks:
        sys.modules["sklearn"] = ModuleType("sklearn")
    try:
        yield
    finally:
        if lacks:
            del sys.modules["sklearn"]
