"""What kernels ask of a GPU when they choose how far to spread: processors, and threads that fit on one.

Source: cuda-generations.
"""

from __future__ import annotations

Capability = tuple[int, int]

# The number of the generation's card that fine-tuning runs on most; other cards of it have fewer.
_MULTIPROCESSORS: dict[Capability, int] = {
    (6, 0): 56,  # P100
    (7, 0): 80,  # V100
    (7, 5): 40,  # T4
    (8, 0): 108,  # A100
    (8, 6): 84,  # A40, RTX A6000; RTX 3090: 82, A10: 72
    (8, 7): 16,  # Jetson Orin
    (8, 9): 128,  # RTX 4090; L40S: 142, L4: 58
    (9, 0): 132,  # H100 SXM, H200; H100 PCIe: 114
    (10, 0): 148,  # B200
    (10, 3): 148,  # B300
    (12, 0): 170,  # RTX 5090; RTX PRO 6000: 188
    (12, 1): 48,  # GB10
}
_THREADS: dict[Capability, int] = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536}


def multiprocessors(capability: Capability) -> int:
    """Streaming multiprocessors of the usual card of a generation; an unknown one counts as an A100."""
    return _MULTIPROCESSORS.get(capability, 108)


def threads_per_multiprocessor(capability: Capability) -> int:
    """Threads that are resident on one multiprocessor at most."""
    return _THREADS.get(capability, 1536 if capability[0] >= 12 else 2048)
