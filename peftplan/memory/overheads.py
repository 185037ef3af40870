"""Memory outside the tensors: cuBLAS workspaces, and what the process holds outside torch's allocator.

The CUDA context and libraries cannot be derived; the table is literature and measurements published by
others, labelled so, and its spread is the interval of `device_bytes`.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftplan.units import KIB, MIB

# PyTorch's default CUBLAS_WORKSPACE_CONFIG: ":4096:2:16:8" (KiB buffers) before Hopper, 32 MiB from Hopper on;
# one for each handle, and forward and backward run on different threads. Source: cublas-workspace.
_WORKSPACE_BEFORE_HOPPER = 2 * 4096 * KIB + 8 * 16 * KIB
_WORKSPACE_HOPPER = 32 * MIB
NUM_WORKSPACES = 2


def cublas_workspace_bytes(compute_capability: tuple[int, int]) -> int:
    """Bytes of one cuBLAS workspace that torch allocates (through its allocator) on this GPU generation."""
    return _WORKSPACE_HOPPER if compute_capability[0] == 9 else _WORKSPACE_BEFORE_HOPPER


@dataclass(frozen=True, slots=True)
class Context:
    """Device memory of a process before its first tensor: CUDA context, kernels, library handles."""

    low_bytes: int
    middle_bytes: int
    high_bytes: int
    basis: str


_BASIS = (
    "literature: CUDA context with torch's and cuBLAS's kernels, as published for drivers 525-580 "
    "(cuda-context); not measured on this machine"
)
# major compute capability -> MiB (low, middle, high)
_CONTEXT_MIB = {
    6: (250, 320, 450),
    7: (280, 360, 500),
    8: (380, 460, 620),
    9: (450, 540, 750),
    10: (480, 600, 850),
    12: (420, 540, 800),
}


def context(compute_capability: tuple[int, int]) -> Context:
    """Memory outside the allocator for a GPU generation; an unknown one takes the newest's."""
    major = compute_capability[0]
    low, middle, high = _CONTEXT_MIB.get(major, _CONTEXT_MIB[10])
    return Context(low * MIB, middle * MIB, high * MIB, _BASIS)
