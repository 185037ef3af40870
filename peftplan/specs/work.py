"""What a step computes and moves: kernels alike, counted. Read by the model of step time and by nothing below it.

Legend: flop counts a multiply-add as two; bytes are what a kernel reads from and writes to device memory when
every operand is touched once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# In the order of a step. `recompute` is the forward that checkpointing runs a second time.
PHASES = ("forward", "recompute", "backward", "optimizer_step")

# Kinds of kernels that reach different rates.
KINDS = (
    "matmul",  # dense products on the tensor cores
    "attention",  # fused attention kernels
    "elementwise",  # pointwise, casts, copies, fills
    "reduction",  # norms, softmax, cross-entropy, sums
    "gather",  # embeddings, indexing, scatter
    "dequantise",  # packed weights to dense ones, or products with packed weights
    "optimizer",  # parameter updates
)

# A copy between device and host, on a stream of its own: no kernel that others wait for.
TRANSFER = "transfer"


class Kernel(NamedTuple):
    """Launches alike on one device: same work, same phase; `count` of them in a micro-batch, or in the update."""

    phase: str
    kind: str
    part: str  # base, adapter, attention, head, loss, optimizer, other
    op: str  # the operation's name in torch's words
    dtype: str  # what it computes in, by its short name: bf16, fp16, fp32, int8
    num_flop: int
    bytes_read: int
    bytes_written: int
    count: int  # type: ignore[assignment]  # a field, not the tuple's method

    @property
    def num_bytes(self) -> int:
        """Bytes moved by one launch."""
        return self.bytes_read + self.bytes_written


Work = tuple[Kernel, ...]


def total_flop(work: Iterable[Kernel]) -> int:
    """Flop of all launches."""
    return sum(kernel.num_flop * kernel.count for kernel in work)


def total_bytes(work: Iterable[Kernel]) -> int:
    """Bytes moved by all launches."""
    return sum(kernel.num_bytes * kernel.count for kernel in work)
