"""Workspaces of bitsandbytes: when a 4-bit weight is multiplied as it is, and what it is dequantised into.

The choice follows the library's calibration of its fused kernel against dequantising and cuBLAS: `rows` are the
tokens, and a [outputs, inputs] weight makes `blocks` of 64 outputs, set against the multiprocessors.
Source: bnb-4bit (backends/cuda/ops.py, bitsandbytes 0.50; 0.43 to 0.49 dequantise for every product but that of
a single row).
"""

from __future__ import annotations

from peftplan.memory.workspaces.device import Capability, multiprocessors

_LARGEST_FUSED = 1536  # rows
_LARGEST_FUSED_OF_LARGE = 512  # rows, where the weight is not small
_SMALL_WEIGHT = 4 * 1024 * 1024  # elements
_ALWAYS_FUSED = 4  # rows
_FEW = 8  # rows


def multiplies_packed(
    rows: int,
    outputs: int,
    inputs: int,
    dtype: str,
    block_size: int,
    capability: Capability,
    processors: int | None = None,
) -> bool:
    """Whether gemm_4bit runs its fused kernel, which takes no workspace; `dtype` is fp32, fp16 or bf16."""
    if rows > _LARGEST_FUSED or inputs % block_size:
        return False
    if rows <= _ALWAYS_FUSED:
        return True
    if dtype == "fp32" or capability < (7, 5) or (capability[0] == 7 and dtype != "fp16"):
        return rows < _FEW
    if capability == (8, 7) or capability[0] == 11:
        return False
    processors = processors or multiprocessors(capability)
    blocks = -(-outputs // 64)
    if capability[0] == 10:
        limit = 32 if blocks >= 3 * processors else 0
        if processors <= blocks < 3 * processors and inputs < outputs:
            limit = 8
        return rows <= limit
    if outputs * inputs < _SMALL_WEIGHT:
        return _small_weight(rows, blocks, outputs, inputs, capability, processors)
    if rows > _LARGEST_FUSED_OF_LARGE:
        return False
    if rows < _FEW:
        return not _dense_for_few_rows(rows, blocks, outputs, inputs, capability, processors)
    return rows <= _most_rows(blocks, outputs, inputs, capability, processors)


def _small_weight(
    rows: int, blocks: int, outputs: int, inputs: int, capability: Capability, processors: int
) -> bool:
    large_memory = capability == (8, 0) or capability[0] == 9  # HBM
    if 2 * inputs < outputs:
        if large_memory:
            low, high = (1536, 512) if capability == (8, 0) else (512, 320)
            return rows <= (low if 3 * blocks < processors else high)
        limit = 320
        if capability == (7, 5):
            if blocks < 3 * processors and inputs >= 704:
                limit = 64 if inputs >= 1024 else 96
        elif blocks < processors and blocks * inputs > 320 * processors:
            limit = 192
        return rows <= limit
    quarter = 4 * blocks <= processors
    if capability == (8, 0) and quarter:
        if inputs < outputs:
            return rows <= 384
        return rows <= (32 if 8 * blocks <= processors else 128)
    if capability == (7, 5) and blocks < processors and rows > _FEW:
        return rows <= 64
    if quarter:
        return rows <= (32 if inputs < outputs or large_memory else 23)
    return rows <= 16 and 2 * blocks <= processors


def _dense_for_few_rows(
    rows: int, blocks: int, outputs: int, inputs: int, capability: Capability, processors: int
) -> bool:
    hopper = capability[0] == 9
    if rows < 6 or not (hopper or capability == (8, 0)) or blocks < (36 if hopper else 48):
        return False
    below_three_quarters, below_three_fifths = 4 * blocks < 3 * processors, 5 * blocks < 3 * processors
    if inputs > outputs:
        return below_three_quarters
    if inputs < outputs:
        return False
    return below_three_quarters and not below_three_fifths if hopper else below_three_fifths


def _most_rows(blocks: int, outputs: int, inputs: int, capability: Capability, processors: int) -> int:
    """Rows of the fused kernel at most, from eight on; 0 where it never pays."""
    half = processors // 2
    if capability == (7, 5):
        if blocks >= 3 * processors:
            return 128 if inputs < outputs else 64
        return 64 if blocks >= half else 32
    if capability == (8, 0):
        return _most_rows_a100(blocks, outputs, inputs, processors)
    if capability == (8, 6):
        return 128 if blocks >= processors else 64 if blocks >= half else 16
    if capability[0] == 9:
        for waves, limit in ((3, 64), (2, 48), (1, 32)):
            if blocks >= waves * processors:
                return limit
        narrow = blocks < half or (inputs >= outputs and 4 * blocks < 3 * processors)
        return 0 if narrow else 16
    if capability == (12, 1) and blocks >= processors:
        return 256
    if capability == (12, 0):
        return _most_rows_blackwell(blocks, outputs, inputs, processors)
    return _most_rows_ada(blocks, outputs, inputs, processors)


def _most_rows_a100(blocks: int, outputs: int, inputs: int, processors: int) -> int:
    if blocks >= 3 * processors:
        return 128
    if blocks >= processors:
        return 64 if inputs < outputs else 32
    if inputs >= 3 * outputs and 4 * blocks > processors:
        return 0
    if inputs == outputs and blocks >= 48 and 5 * blocks < 3 * processors:
        return 0
    if 2 * blocks < processors:
        if inputs <= outputs:
            return 128
        if 3 * blocks >= processors:
            return 0
    return 128 if blocks >= processors // 2 and inputs < outputs else 16


def _most_rows_blackwell(blocks: int, outputs: int, inputs: int, processors: int) -> int:
    if blocks >= 3 * processors:
        return 256
    if blocks >= 2 * processors:
        return 128
    if 5 * blocks >= 4 * processors:
        return 96 if inputs >= outputs else 64
    if blocks >= processors // 2:
        return 64 if 2 * inputs >= outputs and blocks >= 128 else 8
    return 16 if inputs > 2 * outputs and blocks > 64 else 8


def _most_rows_ada(blocks: int, outputs: int, inputs: int, processors: int) -> int:
    if blocks >= 3 * processors:
        return 256
    if blocks >= 2 * processors:
        return 128
    if 5 * blocks >= 4 * processors:
        if inputs > 2 * outputs or blocks >= 200:
            return 128
        if inputs >= outputs:
            return 128 if processors >= 60 else 32
        return 64
    if blocks >= processors // 2:
        if inputs > 2 * outputs:
            return 64
        return 8 if blocks >= 64 else 32
    if inputs > outputs and blocks <= 48:
        return 12 if inputs >= 3 * outputs else 10
    return 16 if inputs > 2 * outputs or blocks < 48 else 8


def gemm_4bit_sizes(outputs: int, inputs: int, block_size: int, itemsize: int, double_quant: bool) -> list[int]:
    """What gemm_4bit holds where it dequantises: block scales before and after their offset, then the dense weight.

    All are alive until the product, which is allocated last, is done.
    """
    scales = -(-outputs * inputs // block_size)
    return [*([4 * scales] * 2 if double_quant else []), outputs * inputs * itemsize]


def dequantize_4bit_sizes(numel: int, block_size: int, double_quant: bool) -> list[int]:
    """What functional.dequantize_4bit holds beside its result: block scales in fp32, the offset added in place."""
    return [4 * -(-numel // block_size)] if double_quant else []


def int8_product_sizes(rows: int, outputs: int) -> list[int]:
    """What an int8 product holds beside its fp16 result: sums in int32. Source: bnb-int8."""
    return [4 * rows * outputs]


def int8_quantise_sizes(numel: int, threshold: float = 6.0) -> list[int]:
    """What row quantisation of an fp16 tensor holds beside its result: magnitudes, and where they are large.

    Assumes: no column holds an outlier, whose indices would be a few bytes. Source: bnb-int8.
    """
    return [2 * numel, numel] if threshold > 0.0 else []
