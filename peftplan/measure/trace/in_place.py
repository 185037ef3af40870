"""What torch does in place on plain tensors and out of place on fake ones.

Parts of torch written for all kinds of tensors ask whether they face a subclass, and then leave their own
buffers alone: gradients of an index are filled into a second tensor, for one. On a GPU they are plain.

Source: torch-derivatives (FunctionsManual.cpp: index_backward, gather_backward, index_select_backward,
value_selecting_reduction_backward), torch-indexing (Onehot.cpp).
"""

from __future__ import annotations

from typing import Any

import torch

aten = torch.ops.aten
_SELECTING = ("TopkBackward0", "SortBackward0", "SortBackward1", "MaxBackward0", "MinBackward0")
# What a derivative calls on fake tensors, what it calls on plain ones, and whose derivative it is.
DERIVATIVES: dict[Any, tuple[Any, tuple[str, ...]]] = {
    aten.index_put.default: (aten.index_put_.default, ("IndexBackward0", "UnsafeIndexBackward0")),
    aten.scatter.src: (aten.scatter_.src, _SELECTING),
    aten.scatter_add.default: (aten.scatter_add_.default, ("GatherBackward0",)),
    aten.index_add.default: (aten.index_add_.default, ("IndexSelectBackward0",)),
}


def on_plain_tensors(func: Any) -> Any:
    """The operation that would run on plain tensors instead of this one of `DERIVATIVES`."""
    node = torch._C._current_autograd_node()
    instead, nodes = DERIVATIVES[func]
    return instead if node is not None and node.name() in nodes and not torch.is_grad_enabled() else func


def one_hot(indices: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    """torch.nn.functional.one_hot as it fills a plain tensor; a fake one it makes of comparisons."""
    if num_classes == -1:
        num_classes = int(indices.max().item()) + 1
    filled = torch.zeros((*indices.shape, num_classes), dtype=indices.dtype, device=indices.device)
    return filled.scatter_(-1, indices.unsqueeze(-1), 1)
