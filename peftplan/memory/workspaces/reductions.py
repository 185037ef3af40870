"""Workspaces of sums over rows: bias and norm gradients, layer norm, the norms of gradient clipping."""

from __future__ import annotations

from peftplan.memory.workspaces.device import Capability, multiprocessors, threads_per_multiprocessor

_THREADS = 512  # of a block that reduces
_WARP = 32
_VALUES_PER_THREAD = 16, 256  # at least, at most, where blocks share one result
SHARED_FROM = _VALUES_PER_THREAD[1]  # rows; fewer are added up by one block
_CHUNK = 65536  # elements of one block of a multi-tensor kernel


def _power_of_two(value: int, most: int) -> int:
    """The largest power of two that is at most `value`; `most` from there on."""
    return most if value >= most else 1 << (value.bit_length() - 1)


def sum_rows_sizes(rows: int, columns: int, capability: Capability, processors: int | None = None) -> list[int]:
    """A [rows, columns] tensor summed over its rows: partial sums of blocks that share a result, and counters.

    The kernel asks for as many times what it uses as a block is wide, so that the buffer comes to about 1 MiB
    for each multiprocessor whatever the shape, once there are rows enough. Sums along the last dimension
    give each result to one block and take nothing worth counting. Assumes: contiguous rows of fewer than
    2**31 bytes in all. Source: torch-reductions (Reduce.cuh, setReduceConfig, global_memory_size).
    """
    if rows < SHARED_FROM or columns == 1:
        return []
    vector = next(width for width in (4, 2, 1) if columns % width == 0)
    threads = _THREADS // vector
    across, down = _power_of_two(columns // vector, threads), _power_of_two(rows, threads)
    width = min(across, _WARP)
    height = min(down, threads // width)
    width = min(across, threads // height)
    if rows < min(16 * height, SHARED_FROM):
        return []
    values = -(-rows // height)
    blocks = -(-columns // vector // width)
    fitting = threads_per_multiprocessor(capability) // (width * height)
    room = fitting * (processors or multiprocessors(capability))
    if values < SHARED_FROM or blocks > room:
        return []
    least, most = _VALUES_PER_THREAD
    shared = max(min(-(-room // blocks), -(-values // least)), -(-values // most))
    return [4 * columns * shared * width * vector, 4 * blocks] if shared > 1 else []


def layer_norm_backward_sizes(
    rows: int, columns: int, itemsize: int, gradients: int, capability: Capability, processors: int | None = None
) -> list[int]:
    """Partial gradients of weight and bias (`gradients`: how many are wanted) over very many short rows.

    Up to 65536 rows, and in wide ones, blocks add up in shared memory. rms_norm has one gradient. The sums of the
    partial ones are over at most 32768 rows each and run one after the other. Source: torch-layer-norm
    (layer_norm_kernel.cu, LaunchGammaBetaBackwardCUDAKernel).
    """
    processors = processors or multiprocessors(capability)
    if not gradients or rows <= 64 * 1024 or columns // _WARP >= processors // 2:
        return []
    across = -(-columns // _WARP)
    down = min(32 * 1024 // across, -(-rows // 32))
    return [down * columns * itemsize] * gradients + sum_rows_sizes(down, columns, capability, processors)


def foreach_norm_sizes(num_tensors: int, largest_numel: int) -> list[int]:
    """torch._foreach_norm: one fp32 number for each chunk that the largest tensor has, for every tensor.

    Source: torch-foreach (ForeachReduceOp.cu, MultiTensorApply.cuh). Other foreach operations, and the fused
    optimizers, hand their lists to the kernel as arguments and allocate nothing.
    """
    return [4 * num_tensors * -(-largest_numel // _CHUNK)] if num_tensors else []


def softmax_backward_sizes(numel: int, itemsize: int) -> list[int]:
    """Gradient times result, in the gradient's type, before the kernel that sums its rows.

    log_softmax's kernel takes the gradient as it is. Source: torch-softmax (softmax_backward_cuda_out).
    """
    return [numel * itemsize]


def logsumexp_sizes(numel: int, rows: int, itemsize: int) -> list[int]:
    """What a logsumexp holds beside its result: each row's largest value, and all values less that.

    Source: torch-log-sum-exp.
    """
    return [rows * itemsize, numel * itemsize]
