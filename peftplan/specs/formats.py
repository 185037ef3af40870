"""Number formats and the packed storage formats of quantised weights."""

from __future__ import annotations

from dataclasses import dataclass

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


FP32 = DType("float32", "fp32", 4, True)
BF16 = DType("bfloat16", "bf16", 2, True)
FP16 = DType("float16", "fp16", 2, True)
INT64 = DType("int64", "int64", 8, False)
INT32 = DType("int32", "int32", 4, False)
UINT8 = DType("uint8", "uint8", 1, False)
INT8 = DType("int8", "int8", 1, False)
BOOL = DType("bool", "bool", 1, False)

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
class QuantFormat:
    """How bitsandbytes keeps one quantised weight on the device.

    Source: bitsandbytes 0.50 `functional.quantize_4bit`, `nn.Int8Params`.
    """

    kind: str  # nf4 | fp4 | int8
    block_size: int = 64
    double_quant: bool = True
    second_block_size: int = 256

    def storages(self, num_rows: int, num_columns: int) -> list[tuple[str, int]]:
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

    def num_bytes(self, num_rows: int, num_columns: int) -> int:
        """Bytes of all tensors kept for one weight, before allocator rounding."""
        return sum(size for _, size in self.storages(num_rows, num_columns))


BLOCK_BYTES = 512  # the CUDA caching allocator hands out multiples of 512 bytes


def allocated_bytes(num_bytes: int) -> int:
    """What the CUDA caching allocator counts for a request of `num_bytes`."""
    return round_up(num_bytes, BLOCK_BYTES) if num_bytes > 0 else 0
