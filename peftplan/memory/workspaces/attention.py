"""Workspaces of the attention kernels: flash, cuDNN's, memory-efficient.

Sizes are of [batch, heads, length, dim] attention; `kv_heads` and `kv_length` are those of keys and values.
"""

from __future__ import annotations

from math import ceil

from peftplan.memory.workspaces.device import Capability, multiprocessors
from peftplan.units import round_up

Version = tuple[int, int]
TORCH: Version = (2, 13)

# ---- flash


def flash_head_width(dim: int, torch: Version = TORCH) -> int:
    """Values a head is padded to in the kernel's fp32 accumulators.

    The flash-attention package 2.8 rounds like torch 2.13. Source: torch-sdpa, flash-attention (flash_api.cpp,
    head_size_rounded: read in torch 2.5, 2.8 and 2.13; versions between two of them follow the older).
    """
    if torch >= (2, 13):
        return round_up(dim, 32 if dim <= 128 else 64)
    if torch >= (2, 8) and dim > 192:
        return 256
    return round_up(dim, 32)


def flash_backward_sizes(
    batch: int,
    heads: int,
    kv_heads: int,
    length: int,
    kv_length: int,
    dim: int,
    itemsize: int = 2,
    torch: Version = TORCH,
    deterministic_on: int = 0,
) -> list[int]:
    """Row sums of gradient times output, dQ in fp32, and dK and dV of all heads where keys have fewer heads.

    `dim` is the width after padding to a multiple of eight. A deterministic run on `deterministic_on`
    multiprocessors keeps one accumulator for each split. Source: torch-sdpa, flash-attention (flash_api.cpp,
    mha_bwd).
    """
    rows = round_up(length, 128)
    splits = ceil(deterministic_on / (batch * heads)) if deterministic_on else 1
    sizes = [4 * batch * heads * rows, 4 * splits * batch * rows * heads * flash_head_width(dim, torch)]
    if kv_heads != heads:
        sizes += [batch * kv_length * heads * dim * itemsize] * 2
    return sizes


def flash_varlen_backward_sizes(
    tokens: int, batch: int, heads: int, kv_heads: int, dim: int, itemsize: int = 2, torch: Version = TORCH
) -> list[int]:
    """The same for sequences one behind another: `tokens` in all, of keys as many, and 128 rows free after each.

    Source: torch-sdpa, flash-attention (flash_api.cpp, mha_varlen_bwd).
    """
    rows = tokens + 128 * batch
    sizes = [4 * heads * rows, 4 * rows * heads * flash_head_width(dim, torch)]
    if kv_heads != heads:
        sizes += [tokens * heads * dim * itemsize] * 2
    return sizes


def flash_splits(blocks: int, key_blocks: int, processors: int) -> int:
    """In how many pieces keys are processed when too few blocks of queries would leave processors idle.

    The fewest pieces that reach 85 % of the best share of busy processors; pieces that only repeat the
    block count of fewer are passed over. Source: flash-attention (flash_api.cpp, num_splits_heuristic).
    """
    if blocks >= 0.8 * processors:
        return 1
    most = min(128, processors, key_blocks)
    busy = {}
    for pieces in range(1, most + 1):
        if pieces == 1 or ceil(key_blocks / pieces) != ceil(key_blocks / (pieces - 1)):
            waves = blocks * pieces / processors
            busy[pieces] = waves / ceil(waves)
    enough = 0.85 * max(busy.values())
    return next(pieces for pieces, share in busy.items() if share >= enough)


def flash_forward_sizes(
    batch: int,
    heads: int,
    length: int,
    kv_length: int,
    dim: int,
    capability: Capability,
    dropout: bool = False,
    torch: Version = TORCH,
    processors: int | None = None,
) -> list[int]:
    """fp32 log-sum-exp rows and outputs of every piece, where keys are split; nothing with dropout.

    Training meets it with few heads and short sequences: batch x heads x ceil(length / 64) below 1.6 times the
    number of multiprocessors. Source: torch-sdpa, flash-attention (flash_api.cpp, set_params_splitkv).
    """
    blocks = batch * heads * -(-length // 64)
    processors = 2 * (processors or multiprocessors(capability))
    if dropout or blocks >= 0.8 * processors:
        return []
    width = 256 if dim <= 64 else 128 if dim <= 128 else 64
    pieces = flash_splits(blocks, -(-kv_length // width), processors)
    if pieces == 1:
        return []
    rows = pieces * batch * heads * length
    return [4 * rows, 4 * rows * flash_head_width(dim, torch)]


# ---- cuDNN


def prefers_cudnn(capability: Capability, torch: Version = TORCH) -> bool:
    """Whether scaled_dot_product_attention tries cuDNN first: Hopper and data-centre Blackwell.

    Assumes: cuDNN above 9.15, as the CUDA 13 wheels of torch 2.13 bring it. Source: torch-sdpa (sdp_utils.cpp).
    """
    return torch >= (2, 13) and capability[0] in (9, 10)


def cudnn_backward_sizes(batch: int, heads: int, length: int, dim: int) -> list[int]:
    """One block: row sums of gradient times output, and dQ in fp32.

    Assumes: nothing for the engine's own plan, whose size only cuDNN knows, dK and dV of all heads included where
    keys have fewer heads; so this is a lower bound. The forward pass asks for nothing else.
    Source: cudnn-frontend (scaled_dot_product_flash_attention.h).
    """
    return [4 * batch * heads * length * (1 + dim)]


# ---- memory-efficient

# GPU generations with the shared memory (164 KiB and more) that the tiles of 128 x 128 take.
_LARGE_SHARED_MEMORY = ((8, 0), (8, 7), (9, 0), (10, 0), (10, 3))


def efficient_forward_sizes(batch: int, heads: int, length: int, dim: int, value_dim: int, half: bool) -> list[int]:
    """Sums of wide heads in fp32, which do not stay in registers; fp32 inputs add up in the result itself.

    Source: torch-efficient-attention (kernel_forward.h, kNeedsOutputAccumulatorBuffer).
    """
    return [4 * batch * heads * length * value_dim] if half and max(dim, value_dim) > 128 else []


def backward_tile(dim: int, half: bool, capability: Capability) -> tuple[int, int, bool]:
    """(queries, keys, whether dK and dV stay in registers) of the kernel taken for a head width.

    Read, not measured: which tile fits a GPU's shared memory. Source: torch-efficient-attention
    (generate_kernels.py).
    """
    if dim <= 64:
        return 64, 64, half
    if dim > 128:
        return 128, 64, False
    if not half:
        return 128, 64, False
    if capability < (8, 0):
        return 128, 64, True
    if capability in _LARGE_SHARED_MEMORY:
        return 128, 128, True
    if dim <= 96 and capability in ((8, 6), (8, 9)):
        return 128, 64, True
    return 64, 64, False


def backward_workspace_bytes(
    batch: int, heads: int, length: int, kv_length: int, dim: int, half: bool, capability: Capability
) -> int:
    """Bytes of the accumulators: dQ in fp32 tiles, and dK and dV of a 16-bit kernel without room for them.

    `dim` is the wider of keys and values. Source: torch-efficient-attention (kernel_backward.h,
    attention_backward.cu).
    """
    queries, keys, in_registers = backward_tile(dim, half, capability)
    tiles = -(-length // queries) * -(-dim // keys)
    per_head = tiles * (16 + 4 * queries * keys)
    if half and not in_registers:
        splits = max(1, min(-(-kv_length // keys), 200 // (batch * heads)))
        per_head += 2 * 4 * splits * keys * round_up(dim, queries)
    return batch * heads * round_up(per_head, 16)
