"""Optimizers: what each keeps for a trainable tensor, and what a step allocates beside it.

An optimizer is a row of `OPTIMIZERS`. States are listed tensor by tensor, because the allocator rounds
each of them; a step's temporaries are either one set over all tensors of a type (foreach) or what a loop
over the tensors holds, written as a program that the tape runs.

Source: adafactor, lion (the papers); the library files behind each row's `source`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from peftplan.specs.formats import FP32, DType
from peftplan.specs.modules import Ops

Shape = tuple[int, ...]

# bitsandbytes keeps small tensors in fp32: `min_8bit_size` of its optimizers.
MIN_8BIT_SIZE = 4096
BLOCK_8BIT = 256
# and smaller states than this out of managed memory: `get_state_buffer`.
MIN_PAGED_SIZE = 100_000


def _numel(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _two_moments(shape: Shape, dtype: DType) -> list[int]:
    size = _numel(shape) * dtype.itemsize
    return [size, size]


def _two_moments_and_step(shape: Shape, dtype: DType) -> list[int]:
    return [4, *_two_moments(shape, dtype)]


def _two_moments_8bit(shape: Shape, dtype: DType) -> list[int]:
    numel = _numel(shape)
    if numel < MIN_8BIT_SIZE:
        return [4 * numel, 4 * numel]
    absmax = 4 * -(-numel // BLOCK_8BIT)
    return [numel, absmax, numel, absmax]


def _unpaged_moments(shape: Shape, dtype: DType) -> list[int]:
    # paged states live in managed memory outside torch's allocator, their block scales inside
    numel = _numel(shape)
    if numel < MIN_PAGED_SIZE:
        return _two_moments_8bit(shape, dtype)
    absmax = 4 * -(-numel // BLOCK_8BIT)
    return [absmax, absmax]


def _paged_moments(shape: Shape, dtype: DType) -> int:
    numel = _numel(shape)
    return 2 * numel if numel >= MIN_PAGED_SIZE else 0


def _wide_moments(shape: Shape, dtype: DType) -> list[int]:
    size = 4 * _numel(shape)
    return [size, size]


def _wide_unpaged_moments(shape: Shape, dtype: DType) -> list[int]:
    return _wide_moments(shape, dtype) if _numel(shape) < MIN_PAGED_SIZE else []


def _wide_paged_moments(shape: Shape, dtype: DType) -> int:
    return 8 * _numel(shape) if _numel(shape) >= MIN_PAGED_SIZE else 0


def _maps_8bit(largest: int) -> tuple[int, ...]:
    # the signed and the unsigned quantisation map, moved to the device by the first 8-bit state
    return (1024, 1024) if largest >= MIN_8BIT_SIZE else ()


def _no_tables(largest: int) -> tuple[int, ...]:
    return ()


def _one_moment(shape: Shape, dtype: DType) -> list[int]:
    return [_numel(shape) * dtype.itemsize]


def _one_fp32_moment(shape: Shape, dtype: DType) -> list[int]:
    return [4 * _numel(shape)]


def _factored(shape: Shape, dtype: DType) -> list[int]:
    if len(shape) < 2:
        return [4 * _numel(shape), 4]
    *lead, rows, columns = shape
    outer = _numel(tuple(lead))
    return [4 * outer * rows, 4 * outer * columns, 4]


def _nothing(shape: Shape, dtype: DType) -> list[int]:
    return []


def _no_pages(shape: Shape, dtype: DType) -> int:
    return 0


def _none(numel: int, dtype: DType) -> int:
    return 0


def _second_moment_copy(numel: int, dtype: DType) -> int:
    return numel * dtype.itemsize


def _adafactor_step(t: Ops, trained: Iterable[tuple[Shape, DType]]) -> None:
    """Adafactor's loop; what a variable holds stays until the next tensor takes its place."""
    grad = weight = update = None
    for shape, dtype in trained:
        numel, narrow = _numel(shape), dtype.itemsize < FP32.itemsize
        grad = None
        grad = t.new(shape, numel, FP32, "gradient in fp32") if narrow else None
        weight = None
        weight = t.new(shape, numel, FP32, "weight in fp32") if narrow else None
        squared = t.new(shape, numel, FP32, "squared gradient")
        update = t.new(shape, numel, FP32, "squared gradient and epsilon")
        del squared
        rows = columns = None
        if len(shape) >= 2:
            rows = t.new((*shape[:-1], 1), numel // shape[-1], FP32, "row factor")
            columns = t.new((*shape[:-2], 1, shape[-1]), numel // shape[-2], FP32, "column factor")
        update = t.new(shape, numel, FP32, "update")
        del rows, columns
        t.new(shape, numel, FP32, "update, negated")
    del grad, weight, update


class Foreach(NamedTuple):
    """One operation over all tensors of a type: tensors that it reads and writes of each, and passes to the kernel.

    A tensor that is passed twice is read once. `scalars`: a number for each tensor is passed too.
    """

    op: str
    lists: int
    read: int
    written: int
    scalars: bool = False
    decay: bool = False  # runs only where weights decay


# Launches of one tensor's update: (operation, bytes read, bytes written).
Loop = Callable[[Shape, DType], list[tuple[str, int, int]]]

_ADAMW_FOREACH = (
    Foreach("_foreach_mul_", 1, 1, 1, decay=True),  # the weight
    Foreach("_foreach_lerp_", 2, 2, 1),  # first moment, gradient
    Foreach("_foreach_mul_", 1, 1, 1),  # second moment
    Foreach("_foreach_addcmul_", 3, 2, 1),  # second moment, gradient squared
    Foreach("_foreach_sqrt", 2, 1, 1),  # second moment, into a copy, which the next two change
    Foreach("_foreach_div_", 1, 1, 1, scalars=True),
    Foreach("_foreach_add_", 1, 1, 1),
    Foreach("_foreach_addcdiv_", 3, 3, 1, scalars=True),  # the weight, first moment, the copy
)
_ADAMW_FUSED = (Foreach("_fused_adamw_", 4, 4, 3),)  # weight, gradient, both moments
_SGD = (Foreach("_foreach_add_", 2, 2, 1),)
_SGD_MOMENTUM = (Foreach("_foreach_mul_", 1, 1, 1), Foreach("_foreach_add_", 2, 2, 1), *_SGD)


def _adafactor_loop(shape: Shape, dtype: DType) -> list[tuple[str, int, int]]:
    """Adafactor's launches for one tensor, in their order; without first moment, decay or relative steps."""
    numel, narrow = _numel(shape), dtype.itemsize < FP32.itemsize
    size = 4 * numel
    own = numel * dtype.itemsize
    made = [("_to_copy", own, size)] * 2 if narrow else []
    number = ("div", 4, 4)
    made += [("linalg_vector_norm", size, 4), number, ("pow", size, size), ("add", size, size)]
    if len(shape) >= 2:
        rows, columns = _factored(shape, dtype)[:2]
        for factor in (rows, columns):
            made += [("mul_", factor, factor), ("mean", size, factor), ("add_", 2 * factor, factor)]
        made += [("mean", rows, 4), ("div", rows, rows), ("rsqrt_", rows, rows), ("rsqrt", columns, columns)]
        made += [("mul", rows + columns, size), ("mul_", 2 * size, size)]
    else:
        made += [("mul_", size, size), ("add_", 2 * size, size), ("rsqrt", size, size), ("mul_", 2 * size, size)]
    made += [("linalg_vector_norm", size, 4), number, number, ("clamp_", 4, 4)]
    made += [("div_", size, size), ("mul_", size, size), ("neg", size, size), ("add_", 2 * size, size)]
    return [*made, ("copy_", size, own)] if narrow else made


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One optimizer: `states` gives the bytes of every tensor kept for a trainable tensor on the device.

    `step_all` are bytes a step holds for every tensor of a type at once; `step` is the program of one that
    goes from tensor to tensor; `paged` is kept in managed memory (not in torch's allocator, at worst all on
    the device); `wide_states` and `wide_paged` are those of tensors whose states a caller keeps in 32 bits;
    `tables` are tensors kept once, given the number of elements of the largest trained tensor.
    What a step launches is one of three: `foreach` operations over all tensors, the `loop` of one tensor, or,
    with neither, one kernel a tensor that reads and writes its weight and all of its states.
    """

    name: str
    summary: str
    source: str
    states: Callable[[Shape, DType], list[int]]
    step_all: Callable[[int, DType], int] = _none
    step: Callable[[Ops, Iterable[tuple[Shape, DType]]], None] | None = None
    paged: Callable[[Shape, DType], int] = _no_pages
    tables: Callable[[int], tuple[int, ...]] = _no_tables
    wide_states: Callable[[Shape, DType], list[int]] | None = None
    wide_paged: Callable[[Shape, DType], int] = _no_pages
    foreach: tuple[Foreach, ...] = ()
    loop: Loop | None = None


OPTIMIZERS: dict[str, Optimizer] = {
    row.name: row
    for row in (
        Optimizer(
            "adamw",
            "torch AdamW, foreach: a step holds a copy of every second moment",
            "torch-adamw",
            _two_moments,
            step_all=_second_moment_copy,
            foreach=_ADAMW_FOREACH,
        ),
        Optimizer(
            "adamw-fused",
            "torch AdamW, fused: no temporaries, step counters on the device",
            "torch-adamw",
            _two_moments_and_step,
            foreach=_ADAMW_FUSED,
        ),
        Optimizer(
            "adamw-8bit",
            "bitsandbytes AdamW8bit: two bytes a parameter and block scales",
            "bnb-optimizers",
            _two_moments_8bit,
            tables=_maps_8bit,
            wide_states=_wide_moments,
        ),
        Optimizer(
            "paged-adamw-8bit",
            "bitsandbytes PagedAdamW8bit: the same in managed memory, which may move to the host",
            "bnb-optimizers",
            _unpaged_moments,
            paged=_paged_moments,
            tables=_maps_8bit,
            wide_states=_wide_unpaged_moments,
            wide_paged=_wide_paged_moments,
        ),
        Optimizer("sgd", "torch SGD without momentum: no state", "torch-sgd", _nothing, foreach=_SGD),
        Optimizer(
            "sgd-momentum", "torch SGD with momentum: one state", "torch-sgd", _one_moment, foreach=_SGD_MOMENTUM
        ),
        Optimizer(
            "adafactor",
            "transformers Adafactor: row and column factors in fp32, no first moment",
            "transformers-adafactor",
            _factored,
            step=_adafactor_step,
            loop=_adafactor_loop,
        ),
        Optimizer("lion", "bitsandbytes Lion, 32 bit: one fp32 state", "bnb-optimizers", _one_fp32_moment),
    )
}
