"""Attention kernels: which is taken, what it saves beyond its inputs, and the buffers it needs."""

from __future__ import annotations

import pytest

from peftplan.memory.player import Player
from peftplan.memory.workspaces.attention import backward_tile, backward_workspace_bytes
from peftplan.specs.formats import BF16, BOOL, FP16, FP32, DType
from peftplan.specs.tensors import Tensor

BATCH, LENGTH = 2, 256


def heads(t: Player, num: int, dim: int, dtype: DType = BF16) -> Tensor:
    """Queries, keys or values that ask for a gradient."""
    x = t.new((BATCH, num, LENGTH, dim), BATCH * num * LENGTH * dim, dtype, "input")
    x.edge = (None, 0, dtype, x.numel)
    return x


def saved_by(
    num: int, kv_heads: int, dim: int, dtype: DType = BF16, masked: bool = False, attention: str = "sdpa"
) -> int:
    """Bytes that one call of the attention interface leaves for backward beside arguments and result."""
    t = Player()
    t.attention = attention
    q, k, v = heads(t, num, dim, dtype), heads(t, kv_heads, dim, dtype), heads(t, kv_heads, dim, dtype)
    mask = t.new((BATCH, 1, LENGTH, LENGTH), BATCH * LENGTH**2, BOOL, "mask") if masked else None
    before = t.requested_bytes
    out = t.attend(q, k, v, mask)
    t.block_weights.clear()
    kept = t.requested_bytes - before - out.storage.record.nbytes
    t.nodes.clear()
    return kept


ROWS = 4 * BATCH * LENGTH * 8  # log-sum-exp of eight heads
RANDOM_STATE = 16 + 8
MASK = BATCH * LENGTH**2


def test_the_flash_kernel_saves_rows_and_a_random_state() -> None:
    """Beside queries, keys, values and result: one fp32 number a head and token, and 24 bytes."""
    assert saved_by(8, 2, 64) == ROWS + RANDOM_STATE


def test_the_package_saves_no_offset() -> None:
    """The flash-attention package keeps the random state alone."""
    assert saved_by(8, 2, 64, attention="flash") == ROWS + 16


def test_a_mask_sends_grouped_heads_to_copies_and_the_efficient_kernel() -> None:
    """With a mask: keys and values for every query head, and the mask in 16 bits."""
    repeated = 2 * 2 * BATCH * 8 * LENGTH * 64
    assert saved_by(8, 2, 64, masked=True) == repeated + 2 * MASK + ROWS


def test_a_single_key_head_is_not_copied() -> None:
    """One key head serves all query heads as a view."""
    assert saved_by(8, 1, 64, masked=True) == 2 * MASK + ROWS


def test_fp32_with_grouped_heads_is_written_out() -> None:
    """No kernel takes fp32 with grouped heads: scaled queries and keys, values and probabilities stay."""
    product = 4 * BATCH * 8 * LENGTH * 64
    scores = 4 * BATCH * 8 * LENGTH**2
    assert saved_by(8, 2, 64, FP32) == 3 * product + scores


@pytest.mark.parametrize(
    ("dim", "dtype", "masked", "capability", "kernel"),
    [
        (128, BF16, False, (8, 0), "flash"),
        (256, FP16, False, (9, 0), "flash"),
        (256, BF16, True, (8, 0), "efficient"),
        (320, BF16, False, (8, 0), "efficient"),
        (100, BF16, True, (8, 0), "math"),
        (100, FP32, False, (8, 0), "efficient"),
        (64, FP16, False, (7, 5), "efficient"),
        (208, BF16, False, (8, 9), "efficient"),
        (208, BF16, False, (8, 0), "flash"),
    ],
)
def test_the_kernel_taken(dim: int, dtype: DType, masked: bool, capability: tuple[int, int], kernel: str) -> None:
    """Flash in 16 bits without a mask up to 256 values a head; else efficient where aligned; else math."""
    t = Player()
    t.compute_capability = capability
    q, k, v = (heads(t, 8, dim, dtype) for _ in range(3))
    assert t.attention_kernel(q, k, v, masked) == kernel


def test_workspace_of_the_efficient_backward() -> None:
    """Gradients of queries gather in fp32 tiles of the kernel's size, each with 16 bytes of counters."""
    assert backward_tile(128, True, (8, 0)) == (128, 128, True)
    assert backward_workspace_bytes(1, 32, 4096, 4096, 128, True, (8, 0)) == 32 * 32 * (16 + 4 * 128**2)
    assert backward_tile(256, True, (8, 0)) == (128, 64, False)
    tiles, splits = 32 * 4 * (16 + 4 * 128 * 64), min(64, 200 // 8)
    gathered = 2 * 4 * splits * 64 * 256
    assert backward_workspace_bytes(1, 8, 4096, 4096, 256, True, (8, 0)) == 8 * (tiles + gathered)
