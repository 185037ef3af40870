"""torchao's optimizers: states in 8 and 4 bits or fp8, and AdamW on the host.

Source: torchao-optimizers, torchao-offload.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from peftplan.optimizers.row import Groups, Optimizer, OptimizerOptions, States, Step, Weight
from peftplan.optimizers.torch_rows import ADAMW_FUSED
from peftplan.specs.formats import FP32, INT64
from peftplan.specs.modules import Ops

_MIN_NUMEL = 4096  # of what is packed; smaller tensors' states are kept in their own type
_COMPILED = (
    "its update is compiled for each shape: what it holds is read from the code that Inductor of torch 2.13 makes "
    "for CUDA"
)
_FP8_KERNELS = (
    "cards below compute capability 8.9 have no fp8 kernels: torch runs casts apart there, which is not counted"
)
_HOST_TIME = (
    "its step is held against the links between host and device alone: how fast the host updates is not known, and "
    "comes on top"
)


class BlockOptions(OptimizerOptions):
    """One scale for so many values."""

    block_size: Annotated[int, Field(ge=1, le=1_000_000, description="values that share a scale")] = 256


class FourBitOptions(BlockOptions):
    """torchao's own default; Trainer's is 256."""

    block_size: Annotated[int, Field(ge=1, le=1_000_000, description="values that share a scale")] = 128


def _is_packed(weight: Weight, options: BlockOptions) -> bool:
    return weight.numel >= _MIN_NUMEL and weight.numel % options.block_size == 0


def _packed(bits: int, num_codes: int) -> Callable[[Weight, BlockOptions], States]:
    """Two states of `bits` a value, each with its scales and, unless the format is its own, a table of codes."""

    def states(weight: Weight, options: BlockOptions) -> States:
        block, made = options.block_size, []
        for name in ("first moment", "second moment"):
            if not _is_packed(weight, options):
                made.append((name, weight.num_bytes))
                continue
            made.append((name, weight.numel * bits // 8))
            made.append((f"block scales of the {name}", 4 * (weight.numel // block)))
            if num_codes:
                made.append(("code tables", 4 * num_codes))
        return made

    return states


def _compiled(bits: int, wide: int) -> Step:
    """A compiled update of one tensor after the other: what its kernels hand one another.

    New scales of both states, and where codes are searched for in a table both states in fp32; for 4 bits the codes
    too, as 64-bit integers before two of them share a byte. `wide`: all that in bytes for a value of a state.
    """

    def step(t: Ops, groups: Groups, options: BlockOptions, renews: bool) -> None:
        for group in groups:
            for row in group:
                size = row.num_bytes
                if not _is_packed(row, options):
                    t.write("optimizer_update", row.dtype, 4 * size, 3 * size)
                    continue
                blocks, packed = row.numel // options.block_size, row.numel * bits // 8
                held = [t.new((blocks,), blocks, FP32, "amax", 2 * packed + size)]
                held.append(t.further((blocks,), blocks, FP32, "amax"))
                held += [t.further(row.shape, row.numel, FP32, "state in fp32") for _ in range(2 if wide else 0)]
                held += [t.further(row.shape, row.numel, INT64, "codes") for _ in range(2 if wide > 4 else 0)]
                between = 2 * wide * row.numel
                t.write("optimizer_update", FP32, between + 2 * size + 2 * packed, size + 2 * packed)
                for _ in range(2):
                    t.write("clamp", FP32, 4 * blocks, 4 * blocks)
                held.clear()

    return step


class OffloadOptions(OptimizerOptions):
    """Of CPUOffloadOptimizer."""

    offload_gradients: Annotated[
        bool, Field(description="gradients leave the device as they come, instead of after the step")
    ] = False
    minimal_size: Annotated[
        int, Field(ge=0, le=10**12, description="values below which a tensor stays with AdamW on the device")
    ] = 4096


def _pinned(num_bytes: int) -> int:
    """What torch takes of the host for a pinned tensor: the next power of two. Source: torch-pinned."""
    return 1 << (num_bytes - 1).bit_length()


def _on_host(weight: Weight, options: OffloadOptions) -> States:
    pinned = _pinned(weight.num_bytes)
    return [
        ("weights, pinned", pinned),
        ("gradients, pinned", pinned),
        ("step", 4),
        ("first moment", weight.num_bytes),
        ("second moment", weight.num_bytes),
    ]


TORCHAO = (
    Optimizer(
        "adamw-torchao-8bit",
        "torchao AdamW8bit: two bytes a parameter, block scales and code tables, compiled",
        "torchao-optimizers",
        _packed(8, 256),
        aliases=("adamw-torch-8bit",),
        options=BlockOptions,
        step=_compiled(8, 4),
        notes=(_COMPILED,),
    ),
    Optimizer(
        "adamw-torchao-4bit",
        "torchao AdamW4bit: one byte a parameter, block scales and code tables, compiled",
        "torchao-optimizers",
        _packed(4, 16),
        aliases=("adamw-torch-4bit",),
        options=FourBitOptions,
        of_trainer={"block_size": 256},
        step=_compiled(4, 12),
        notes=(_COMPILED,),
    ),
    Optimizer(
        "adamw-torchao-fp8",
        "torchao AdamWFp8: two fp8 states with block scales, compiled",
        "torchao-optimizers",
        _packed(8, 0),
        aliases=("adamw-fp8",),
        options=BlockOptions,
        step=_compiled(8, 0),
        notes=(_COMPILED, _FP8_KERNELS),
    ),
    Optimizer(
        "adamw-offload",
        "torchao CPUOffloadOptimizer: AdamW on the host, with its states and copies of weights and gradients",
        "torchao-offload",
        aliases=("adamw-cpu-offload", "cpu-offload"),
        options=OffloadOptions,
        host=_on_host,
        takes=lambda weight, options: weight.numel >= options.minimal_size,
        beside=ADAMW_FUSED,
        transfers=lambda weight, options: (weight.num_bytes, weight.num_bytes),
        keeps_gradient=lambda weight, options: not options.offload_gradients,
        takes_masters=False,
        notes=(_HOST_TIME,),
    ),
)
