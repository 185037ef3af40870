"""The bench: reads the programs by which adapters are merged, on a GPU or on the host.

It is the tape without a graph. A layer's program runs on its own, from a level of zero: what it makes and drops
moves the level, and what takes the place of a weight is counted against the bytes that it replaces. On the host
nothing rounds a request up, and where an operation's types differ torch casts each operand into a buffer of its own
first; kernels of a GPU cast as they read. What passes through the host on the way back to a GPU is counted there.

Source: torch-mixed-types, bnb-linear4bit, bnb-int8.
"""

from __future__ import annotations

from peftplan.memory.graph import Record, Storage
from peftplan.memory.player import Player
from peftplan.specs.formats import BOOL, FP16, FP32, INT8, UINT8, DType, QuantFormat, allocated_bytes, promote
from peftplan.specs.tensors import Parameter, Tensor, bytes_of

_SECOND_CODES = 256  # numbers in the code of the scales' scales
_FOUR_BIT_CODES = 16
_TRANSPOSED_SQUARE = 60  # ATen/native/Copy.cpp


class Bench(Player):
    """Plays a merge; `safe`: peft is asked to look for NaNs before it replaces a weight."""

    def __init__(self, host: bool, safe: bool) -> None:
        super().__init__()
        self.host, self.safe = host, safe
        self.grad_enabled = self.training = False
        self.host_level_bytes = self.host_peak_bytes = 0
        self.link_bytes = 0  # between GPU and host, both ways
        self.placed: list[Tensor] = []  # what stands in the place of weights

    def new(
        self,
        shape: tuple[int, ...],
        numel: int,
        dtype: DType,
        op: str,
        read: int | None = None,
        num_flop: int = 0,
    ) -> Tensor:
        """As on a GPU; on the host as large as asked for."""
        if not self.host:
            return super().new(shape, numel, dtype, op, read, num_flop)
        nbytes = numel * dtype.itemsize
        self.clock += 1
        record = Record(nbytes, nbytes, self.clock, op, self.module, shape, dtype, self.kind, read, num_flop)
        self.records.append(record)
        self.requested_bytes += nbytes
        self._raise_level(nbytes)
        return Tensor(shape, numel, dtype, Storage(self, record), None)

    def _raise_level(self, num_bytes: int) -> None:
        self.level_bytes += num_bytes
        if self.level_bytes > self.peak_bytes:
            self.peak_bytes, self.peak_clock = self.level_bytes, self.clock

    def room_of(self, num_bytes: int) -> int:
        """What a request takes: on a GPU the allocator rounds it up."""
        return num_bytes if self.host else allocated_bytes(num_bytes)

    # ---- types that meet
    def elementwise_result(self, a: Tensor, b: Tensor, op: str) -> Tensor:
        """On the host operands of another type than the result's are cast first."""
        out = super().elementwise_result(a, b, op)
        held = self._cast_operands(out.dtype, a, b)
        del held
        return out

    def add_in_place(self, a: Tensor, b: Tensor) -> Tensor:
        """On the host a sum in a wider type than the first operand's is made aside and cast back."""
        common = promote(a.dtype, b.dtype)
        held = self._cast_operands(common, a, b)
        if held and a.dtype is not common:
            held.append(self.new(a.shape, a.numel, common, "add", 0))
        out = super().add_in_place(a, b)
        del held
        return out

    def _cast_operands(self, common: DType, *operands: Tensor) -> list[Tensor]:
        if not self.host:
            return []
        return [
            self.new(x.shape, x.numel, common, "_to_copy", bytes_of(x))
            for x in operands
            if x.dtype is not common and x.shape
        ]

    def from_host(self, shape: tuple[int, ...], numel: int, dtype: DType) -> Tensor:
        """On the host it is there already."""
        return Tensor(shape, numel, dtype, None, None) if self.host else super().from_host(shape, numel, dtype)

    def copy_transposed(self, to: Parameter, x: Tensor) -> None:
        """to.copy_(x.t()); of one type, the host passes it through a small square."""
        if self.host and x.dtype is to.dtype:
            self.workspace("copy_", _TRANSPOSED_SQUARE**2 * x.dtype.itemsize)
        self.write("copy_", to.dtype, bytes_of(x), bytes_of(x) // x.dtype.itemsize * to.dtype.itemsize)

    def narrow_on_host(self, x: Tensor) -> bool:
        """Whether peft multiplies a 16-bit tensor in fp32, since some CPUs are slow at it."""
        return self.host and x.dtype.itemsize == 2

    def widened(self, x: Tensor) -> Tensor:
        """`x.float()` where peft multiplies on the host, else `x` itself."""
        return self.to(x, FP32) if self.narrow_on_host(x) else x

    # ---- what a merge does with whole weights
    def check(self, x: Tensor) -> None:
        """`torch.isfinite(x).all()`: magnitudes, two comparisons, and both together."""
        magnitudes = self.like(x, "abs")
        bounded = self.new(x.shape, x.numel, BOOL, "ne", bytes_of(magnitudes))
        itself = self.new(x.shape, x.numel, BOOL, "eq", bytes_of(x))
        both = self.like(itself, "mul", bytes_of(itself, bounded))
        del itself, bounded, magnitudes  # C++ drops them at the end of the expression
        done = self.new((), 1, BOOL, "all", bytes_of(both))
        del both, done

    def place(self, weight: Parameter, *tensors: Tensor) -> None:
        """`tensors` take the place of a weight, whose bytes are given back."""
        self.placed += tensors
        self.level_bytes -= sum(self.room_of(size) for _, size in weight.loaded_storages())

    def give_back(self, *parameters: Parameter) -> None:
        """Parameters that end before their layer does."""
        for parameter in parameters:
            self.level_bytes -= sum(self.room_of(size) for _, size in parameter.loaded_storages())

    def pack_again(self, weight: Parameter, data: Tensor) -> None:
        """Pack a weight anew: it goes to the host and back, and is quantised on the device."""
        self._through_host(data, FP16 if weight.quant is not None and weight.quant.kind == "int8" else data.dtype)
        assert weight.quant is not None
        if weight.quant.kind == "int8":
            self._pack_8bit(weight, data)
        else:
            self._pack_4bit(weight, data)

    def _through_host(self, data: Tensor, back: DType) -> None:
        """A copy on the host, which is cast there where another type comes back."""
        there = bytes_of(data)
        returned = data.numel * back.itemsize
        held = there + (returned if back is not data.dtype else 0)
        self.host_peak_bytes = max(self.host_peak_bytes, self.host_level_bytes + held)
        self.link_bytes += there + returned

    def _pack_4bit(self, weight: Parameter, data: Tensor) -> None:
        quant = weight.quant
        assert isinstance(quant, QuantFormat)
        returned = self.new(data.shape, data.numel, data.dtype, "_to_copy", 0)
        blocks = -(-data.numel // quant.block_size)
        packed = self.new(
            ((data.numel + 1) // 2, 1), (data.numel + 1) // 2, UINT8, "quantize_4bit", bytes_of(returned)
        )
        scales = self.further((blocks,), blocks, FP32, "quantize_4bit")
        code = self.new((_FOUR_BIT_CODES,), _FOUR_BIT_CODES, FP32, "_to_copy", 0)
        magnitudes = self.like(code, "abs")
        largest = self.new((), 1, FP32, "max", bytes_of(magnitudes))
        del magnitudes, largest
        if not quant.double_quant:
            self.place(weight, packed, scales, code)
            return
        offset = self.new((), 1, FP32, "mean", 4 * blocks)
        centred = self.new((blocks,), blocks, FP32, "sub", 4 * blocks)
        seconds = -(-blocks // quant.second_block_size)
        narrow = self.new((blocks,), blocks, UINT8, "quantize_blockwise", 4 * blocks)
        second = self.further((seconds,), seconds, FP32, "quantize_blockwise")
        table = self.new((_SECOND_CODES,), _SECOND_CODES, FP32, "_to_copy")
        del centred, scales, returned
        self.place(weight, packed, narrow, code, offset, second, table)

    def _pack_8bit(self, weight: Parameter, data: Tensor) -> None:
        returned = self.new(data.shape, data.numel, FP16, "_to_copy", 0)
        rows = data.shape[0]
        scales = self.new((rows,), rows, FP32, "int8_vectorwise_quant", bytes_of(returned))
        narrow = self.further(data.shape, data.numel, INT8, "int8_vectorwise_quant")
        del returned
        self.place(weight, narrow, scales)
