"""MXFP4: 4-bit floats in blocks of 32 with one exponent byte each, gpt-oss's experts as published.

Read in transformers 5.23 (quantizers/quantizer_mxfp4.py, integrations/mxfp4.py). Its kernels have no backward and
its quantizer says that it does not train: to train, experts are dequantised to bf16 while loading
(Mxfp4Config(dequantize=True); without Triton or the kernels package transformers does so anyway). Source: mxfp4,
transformers-mxfp4
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from peftplan.methods.quantize import PackedLinear
from peftplan.methods.quantizers.quantizer import Quantizer, Settled
from peftplan.specs.formats import PackedFormat
from peftplan.specs.modules import Linear

BLOCK = 32
_ROWS_AT_ONCE = 32768 * 1024  # blocks that are dequantised together


@dataclass(frozen=True, slots=True)
class Mxfp4Format(PackedFormat):
    """Two weights a byte, and a byte for the exponent of each block along the input."""

    block_size: int = BLOCK

    def storages(self, num_rows: int, num_columns: int, num_matrices: int = 1) -> list[tuple[str, int]]:
        """blocks [.., out, in / 32, 16] and scales [.., out, in / 32]; kernels' own layouts may pad."""
        blocks = num_matrices * num_rows * -(-num_columns // self.block_size)
        return [("mxfp4 blocks", blocks * self.block_size // 2), ("block exponents", blocks)]

    def checkpoint_bytes(self, shape: tuple[int, ...]) -> int:
        """Packed along the input, which transformers' own tensor has before the outputs."""
        *stack, inputs, outputs = shape
        return self.num_bytes(outputs, inputs, prod(stack))

    def loading_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        """What dequantising a layer's experts holds beside the result (convert_moe_packed_tensors).

        The blocks, their exponents as bytes and as int32, and the larger of: for a chunk of blocks, the indices of
        half its weights as int32 and what these look up; at the end, the result before its transposition.
        """
        numel = prod(shape)
        blocks = numel // self.block_size
        chunk = min(blocks, _ROWS_AT_ONCE) * self.block_size // 2
        held = numel // 2 + blocks + 4 * blocks
        return held + max(numel * itemsize, (4 + itemsize) * chunk)


def _make(asked: Settled) -> Mxfp4Format:
    return Mxfp4Format("mxfp4", asked.block_size)


def _packs(linear: Linear, in_block: bool) -> bool:
    return False


QUANTIZERS = (
    Quantizer(
        "mxfp4",
        "4-bit floats, an exponent for each block of 32: gpt-oss's experts (transformers)",
        "mxfp4",
        bits=(4,),
        default_bits=4,
        block_sizes=(BLOCK,),
        default_block_size=BLOCK,
        make=_make,
        wrap=PackedLinear,
        packs=_packs,
        forward="nothing, without a backward; to train, all experts in bf16 from the load on",
        trains=False,
        dequantizes_below=None,
        merging="into experts that were dequantised when they were loaded",
        refusal=(
            "--quant mxfp4: transformers 5.23 cannot train on packed experts, whose kernels have no backward; "
            "leave --quant out, which has them dequantised to bf16 when they are loaded"
        ),
    ),
)
