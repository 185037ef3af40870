"""Memory outside the tensors: cuBLAS workspaces, and what the process holds outside torch's allocator.

The CUDA context and libraries cannot be derived; the table is literature and measurements published by
others, labelled so, and its spread is the interval of `device_bytes`.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftplan.parallel.data_parallel import communication_bytes
from peftplan.units import KIB, MIB

# PyTorch's default CUBLAS_WORKSPACE_CONFIG: ":4096:2:16:8" (KiB buffers), and 32 MiB on Hopper and Blackwell;
# one for each handle, and forward and backward run on different threads. Source: cublas-workspace.
_WORKSPACE = 2 * 4096 * KIB + 8 * 16 * KIB
_LARGE_WORKSPACE = 32 * MIB
_LARGE_ON = (9, 10, 12)  # major compute capabilities; torch 2.5 and 2.8: 9 only
NUM_WORKSPACES = 2


def cublas_workspace_bytes(compute_capability: tuple[int, int]) -> int:
    """Bytes of one cuBLAS workspace that torch allocates (through its allocator) on this GPU generation.

    cuBLASLt, which adds biases, is handed the same one.
    """
    return _LARGE_WORKSPACE if compute_capability[0] in _LARGE_ON else _WORKSPACE


def all_workspaces_bytes(compute_capability: tuple[int, int]) -> int:
    """Bytes of the workspaces of both threads."""
    return NUM_WORKSPACES * cublas_workspace_bytes(compute_capability)


@dataclass(frozen=True, slots=True)
class Context:
    """Device memory of a process before its first tensor: CUDA context, kernels, library handles."""

    low_bytes: int
    middle_bytes: int
    high_bytes: int
    basis: str


_LITERATURE = (
    "CUDA context from literature (what nvidia-smi shows for a process with one torch tensor and cuBLAS "
    "loaded; drivers 525-580; cuda-context), uncalibrated for this card"
)
_MEASURED_T4 = (
    "CUDA context measured by others: process minus reserved on 79 runs on a Tesla T4, torch 2.14 with CUDA 13, "
    "2026-09 (fitcheck-t4)"
)
# compute capability, or its major number -> (low, middle, high) MiB and the ground for it
_CONTEXT_MIB: dict[tuple[int, ...], tuple[int, int, int, str]] = {
    (6,): (250, 300, 450, _LITERATURE),
    (7, 0): (250, 310, 500, _LITERATURE),
    (7, 5): (105, 141, 310, _MEASURED_T4),
    (8,): (250, 450, 600, _LITERATURE),
    (9,): (400, 540, 750, _LITERATURE),
    (10,): (400, 600, 850, _LITERATURE),
    (12,): (350, 540, 800, _LITERATURE),
}


def context(compute_capability: tuple[int, int]) -> Context:
    """Memory outside the allocator for a GPU generation; an unknown one takes the newest's."""
    row = _CONTEXT_MIB.get(compute_capability) or _CONTEXT_MIB.get(compute_capability[:1])
    low, middle, high, basis = row or _CONTEXT_MIB[(10,)]
    return Context(low * MIB, middle * MIB, high * MIB, basis)


def outside(compute_capability: tuple[int, int], num_gpus: int = 1, switched: bool = True) -> Context:
    """What torch's allocator does not see: the context, and NCCL's buffers where GPUs share a step."""
    own = context(compute_capability)
    if num_gpus == 1:
        return own
    low, middle, high = communication_bytes(num_gpus, switched)
    return Context(
        own.low_bytes + low,
        own.middle_bytes + middle,
        own.high_bytes + high,
        f"{own.basis}; NCCL's buffers from its sources and what users saw (nccl-buffers), uncalibrated",
    )
