"""Number formats and the packed storage formats of quantised weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from peftplan.units import round_up


class DType:
    """A tensor element type: its torch name and bytes per element. Compared by identity."""

    __slots__ = ("is_float", "itemsize", "name", "short")

    def __init__(self, name: str, short: str, itemsize: int, is_float: bool) -> None:
        self.name, self.short, self.itemsize, self.is_float = name, short, itemsize, is_float

    def __repr__(self) -> str:
        return self.name

    def __deepcopy__(self, memo: object) -> DType:
        return self


FP64 = DType("float64", "fp64", 8, True)
FP32 = DType("float32", "fp32", 4, True)
BF16 = DType("bfloat16", "bf16", 2, True)
FP16 = DType("float16", "fp16", 2, True)
INT64 = DType("int64", "int64", 8, False)
INT32 = DType("int32", "int32", 4, False)
UINT8 = DType("uint8", "uint8", 1, False)
INT8 = DType("int8", "int8", 1, False)
BOOL = DType("bool", "bool", 1, False)
FP8 = DType("float8_e4m3fn", "fp8", 1, True)

FLOAT_DTYPES = {d.short: d for d in (FP32, BF16, FP16)}


def promote(a: DType, b: DType) -> DType:
    """The result type of an elementwise operation on two tensors, after torch's promotion rules."""
    if a is b:
        return a
    if a.is_float and b.is_float:
        return FP32  # bf16 with fp16, or either with fp32
    if a.is_float:
        return a
    if b.is_float:
        return b
    return a if a.itemsize >= b.itemsize else b


@dataclass(frozen=True, slots=True)
class PackedFormat:
    """How a quantiser keeps one weight on the device: a name, and the tensors that hold it.

    Quantisers beside bitsandbytes derive their own in `methods/quantizers/`, one file each.
    """

    kind: str

    def storages(self, num_rows: int, num_columns: int, num_matrices: int = 1) -> list[tuple[str, int]]:
        """Name and bytes of every tensor kept for `num_matrices` stacked weights [num_rows, num_columns]."""
        raise NotImplementedError(type(self).__name__)

    def num_bytes(self, num_rows: int, num_columns: int, num_matrices: int = 1) -> int:
        """Bytes of all tensors kept for one weight, before allocator rounding."""
        return sum(size for _, size in self.storages(num_rows, num_columns, num_matrices))

    def bits_per_param(self, num_rows: int, num_columns: int) -> float:
        """Bits of a weight of this shape, with what is kept beside it."""
        return 8 * self.num_bytes(num_rows, num_columns) / (num_rows * num_columns)

    def checkpoint_bytes(self, shape: tuple[int, ...]) -> int:
        """What the weight takes in the checkpoint that it is loaded from: as it is kept, of one packed before."""
        return self.num_bytes(shape[-2], shape[-1], prod(shape[:-2]))

    def loading_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        """What the device holds beside the kept tensors while the weight is loaded: nothing, packed before."""
        return 0


@dataclass(frozen=True, slots=True)
class QuantFormat(PackedFormat):
    """How bitsandbytes keeps one quantised weight on the device: nf4, fp4 or int8.

    Source: bitsandbytes 0.50 `functional.quantize_4bit`, `nn.Int8Params`.
    """

    block_size: int = 64
    double_quant: bool = True
    second_block_size: int = 256

    def storages(self, num_rows: int, num_columns: int, num_matrices: int = 1) -> list[tuple[str, int]]:
        """Name and bytes of every tensor kept for one `num_rows` x `num_columns` weight."""
        num_weights = num_rows * num_columns
        if self.kind == "int8":
            # one signed byte a weight and one fp32 scale for each output row
            return [("int8 weight", num_weights), ("row scales", 4 * num_rows)]
        num_blocks = -(-num_weights // self.block_size)
        packed = [("packed weight", (num_weights + 1) // 2)]
        code = [("code table", 16 * 4)]
        if not self.double_quant:
            return [*packed, ("absmax", 4 * num_blocks), *code]
        num_second_blocks = -(-num_blocks // self.second_block_size)
        return [
            *packed,
            ("absmax (8 bit)", num_blocks),
            *code,
            ("absmax offset", 4),
            ("second-level absmax", 4 * num_second_blocks),
            ("second-level code table", 256 * 4),
        ]

    def checkpoint_bytes(self, shape: tuple[int, ...]) -> int:
        """A 16-bit checkpoint, packed while it is loaded."""
        return 2 * prod(shape)

    def loading_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        """The dense weight, and the fp32 block scales of its first pass."""
        return itemsize * prod(shape) + 4 * -(-prod(shape) // self.block_size)


BLOCK_BYTES = 512  # the CUDA caching allocator hands out multiples of 512 bytes


def allocated_bytes(num_bytes: int) -> int:
    """What the CUDA caching allocator counts for a request of `num_bytes`."""
    return round_up(num_bytes, BLOCK_BYTES) if num_bytes > 0 else 0
