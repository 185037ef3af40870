"""HQQ: 1 to 8 bits a weight in bytes (3 bits: ten in a word), a scale and a zero in 16 bits for each group.

Read in hqq 0.2.8 (core/quantize.py, core/bitpack.py) and traced from its PyTorch backend, the default one: forward
and backward each unpack the whole weight into a tensor of the compute type and then shift and scale it, out of
place, so that three matrices of the weight's size are there at once. The autograd function saves its input, which
nothing reads. transformers 5.23 has no loader of HQQ left (its quantizer has no operations: "will be supported
soon"), so that the model is made with hqq's own AutoHQQHFModel. Source: hqq
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from peftplan.methods.quantize import PackedLinear
from peftplan.methods.quantizers.quantizer import (
    BESIDE_LINEARS,
    Asked,
    Quantizer,
    QuantOptions,
    Settled,
    is_linear,
)
from peftplan.specs.formats import INT32, UINT8, DType, PackedFormat
from peftplan.specs.modules import Linear, Ops
from peftplan.specs.tensors import Parameter, Tensor

# Weights that one stored number holds: bytes, but for 3 bits a 32-bit word.
_PACKED = {8: 1, 4: 2, 3: 10, 2: 4, 1: 8}


class HqqOptions(QuantOptions):
    """How weights are grouped."""

    axis: Annotated[Literal[0, 1], Field(description="groups along the outputs (0) or the inputs (1)")] = 1


@dataclass(frozen=True, slots=True)
class HqqFormat(PackedFormat):
    """W_q, packed along its first dimension, and a scale and a zero for each group in the compute type, 16 bits."""

    bits: int = 4
    group_size: int = 64
    axis: int = 1

    def packed_shape(self, num_weights: int) -> tuple[int, int]:
        """Rows and columns of W_q: weights stand as [groups, group] or, along the outputs, as [group, groups]."""
        groups = num_weights // self.group_size
        rows, columns = (groups, self.group_size) if self.axis else (self.group_size, groups)
        return -(-rows // _PACKED[self.bits]), columns

    def storages(self, num_rows: int, num_columns: int, num_matrices: int = 1) -> list[tuple[str, int]]:
        """W_q, scale, zero. Assumes: a 16-bit compute type."""
        num_weights = num_rows * num_columns
        rows, columns = self.packed_shape(num_weights)
        scales = 2 * (num_weights // self.group_size)
        itemsize = 4 if self.bits == 3 else 1
        return [("packed weight", itemsize * rows * columns), ("scales", scales), ("zeros", scales)]

    def checkpoint_bytes(self, shape: tuple[int, ...]) -> int:
        """A 16-bit checkpoint, packed while it is loaded."""
        return 2 * shape[0] * shape[1]

    def loading_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        """The dense weight, and beside it what the solver holds of each number (optimize_weights_proximal).

        22 bytes: a copy in fp32 (4) and one in fp16 (2), codes and weights of two rounds in fp16 (8), the error,
        its magnitude, that to a power and the product (8). Read, not measured.
        """
        return (4 + 2 + 8 + 8 + itemsize) * shape[0] * shape[1]


class _Product:
    """HQQMatmulNoCacheMul: both passes."""

    name = "HQQMatmulNoCacheMulBackward"
    saves_input = True

    @staticmethod
    def product(t: Ops, x: Tensor, weight: Parameter, bias: Parameter | None) -> Tensor:
        """x @ W.T, autocast casting both; the bias is added in place."""
        dense = unpack(t, weight)
        dtype = t.autocast or x.dtype
        narrow = t.to_detached(dense, dtype), t.to_detached(x, dtype)
        rows, outputs = x.numel // x.shape[-1], weight.shape[0]
        read = (x.numel + weight.numel) * dtype.itemsize
        out = t.new((*x.shape[:-1], outputs), rows * outputs, dtype, "mm", read, 2 * x.numel * outputs)
        del narrow, dense
        return t.add_in_place(out, bias) if bias is not None else out  # type: ignore[no-any-return]

    @staticmethod
    def gradient(t: Ops, g: Tensor, weight: Parameter, shape: tuple[int, ...], numel: int) -> Tensor:
        """g @ W."""
        dense = unpack(t, weight)
        read = (g.numel + weight.numel) * g.dtype.itemsize
        out = t.new(shape, numel, g.dtype, "mm", read, 2 * numel * weight.shape[0])
        del dense
        return out  # type: ignore[no-any-return]


def unpack(t: Ops, weight: Parameter) -> Tensor:
    """Quantizer.dequantize: codes in the compute type, minus zeros, times scales."""
    quant, dtype = weight.quant, weight.dtype
    assert isinstance(quant, HqqFormat)
    rows, columns = quant.packed_shape(weight.numel)
    stored, packed = rows * columns, _PACKED[quant.bits]
    narrow = INT32 if quant.bits == 3 else UINT8
    size = packed * stored
    if packed == 1:
        codes = t.new((rows, columns), size, dtype, "packed weight dequantised", stored)
    else:
        codes = t.new((packed * rows, columns), size, dtype, "empty", 0)
        for number in range(packed):
            masked = t.new((rows, columns), stored, narrow, "bitwise_and")
            shifted = (
                t.new((rows, columns), stored, narrow, "bitwise_right_shift") if number < packed - 1 else masked
            )
            t.write("packed weight dequantised", dtype, stored * narrow.itemsize, stored * dtype.itemsize)
            del masked, shifted
    moved = t.new(weight.shape, weight.numel, dtype, "sub")
    out = t.new(weight.shape, weight.numel, dtype, "mul")
    del codes, moved
    return out  # type: ignore[no-any-return]


class HqqLinear(PackedLinear):
    """hqq's HQQLinear on its PyTorch backend."""

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        return t.packed_linear(x, self.weight, self.bias, _Product)  # type: ignore[no-any-return]

    def unpacked(self, t: Ops) -> Tensor:
        with t.no_grad():
            return unpack(t, self.weight)


def _make(asked: Settled) -> HqqFormat:
    return HqqFormat("hqq", asked.bits, asked.block_size, asked.options.axis)


def _wrap(linear: Linear, quant: PackedFormat, compute_dtype: DType) -> HqqLinear:
    made = HqqLinear(linear, quant, compute_dtype)
    made.weight.set_dtype(compute_dtype)
    if made.bias is not None:
        made.bias.set_dtype(compute_dtype)
    return made


def _packs(linear: Linear, in_block: bool) -> bool:
    """nn.Linear itself, by hqq's own list of classes."""
    return is_linear(linear)


def _reads(config: Mapping[str, Any]) -> Asked:
    weights = config.get("quant_config", {}).get("weight_quant_params", {})
    axis = weights.get("axis")
    return Asked(weights.get("nbits"), weights.get("group_size"), options={} if axis is None else {"axis": axis})


QUANTIZERS = (
    Quantizer(
        "hqq",
        "1, 2, 3, 4 or 8 bits a weight, a 16-bit scale and zero for each group (hqq, without calibration)",
        "hqq",
        bits=(8, 4, 3, 2, 1),
        default_bits=4,
        block_sizes=(16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
        default_block_size=64,
        make=_make,
        wrap=_wrap,
        packs=_packs,
        options=HqqOptions,
        forward="the whole weight in 16 bits, three times its size while that is done; in backward again",
        carries=BESIDE_LINEARS | {"LORA", "MISS", "VERA", "OFT", "BOFT"},
        lora_fields=frozenset({"use_dora"}),
        merges=True,
        merging="dequantised, merged, and packed again, which rounds the merged weights",
        spared_by_prepare=True,
        reads=_reads,
        explains={
            "packed weight": "{bits} bits a weight, in bytes (3 bits: ten in an int32)",
            "scales": "2 B for each group of {block} weights",
            "zeros": "2 B for each group of {block} weights",
        },
        skips=("skip_modules",),
        notes=(
            (
                "hqq: transformers 5.23 cannot load it (its quantizer has no operations yet); the model is made "
                "with "
                "hqq's own AutoHQQHFModel, on its PyTorch backend"
            ),
        ),
    ),
)
