"""Optimizers: what each keeps for a trainable tensor, and what a step allocates beside it.

An optimizer is a row of `OPTIMIZERS`. States are listed tensor by tensor, because the allocator rounds
each of them; a step's temporaries are either one set over all tensors of a type (foreach) or those of the
largest tensor alone (a loop over tensors).

Source: adafactor, lion (the papers); the library files behind each row's `source`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peftplan.specs.formats import DType

Shape = tuple[int, ...]

# bitsandbytes keeps small tensors in fp32: `min_8bit_size` of its optimizers.
MIN_8BIT_SIZE = 4096
BLOCK_8BIT = 256


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


def _small_moments(shape: Shape, dtype: DType) -> list[int]:
    # paged states live in managed memory outside torch's allocator; small tensors are not paged
    numel = _numel(shape)
    if numel < MIN_8BIT_SIZE:
        return [4 * numel, 4 * numel]
    absmax = 4 * -(-numel // BLOCK_8BIT)
    return [absmax, absmax]


def _paged_moments(shape: Shape, dtype: DType) -> int:
    numel = _numel(shape)
    return 2 * numel if numel >= MIN_8BIT_SIZE else 0


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


def _adafactor_work(numel: int, dtype: DType) -> int:
    # fp32 gradient and weight copies where the format is narrower, the squared update, the update
    copies = 0 if dtype.itemsize == 4 else 2
    return (copies + 2) * 4 * numel


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One optimizer: `states` gives the bytes of every tensor kept for a trainable tensor on the device.

    `step_all` are bytes a step holds for every tensor of a type at once, `step_each` for the tensor being
    updated only; `paged` is kept in managed memory (not in torch's allocator, at worst all on the device);
    `tables` are bytes kept once.
    """

    name: str
    summary: str
    source: str
    states: Callable[[Shape, DType], list[int]]
    step_all: Callable[[int, DType], int] = _none
    step_each: Callable[[int, DType], int] = _none
    paged: Callable[[Shape, DType], int] = _no_pages
    tables: tuple[int, ...] = ()


OPTIMIZERS: dict[str, Optimizer] = {
    row.name: row
    for row in (
        Optimizer(
            "adamw",
            "torch AdamW, foreach: a step holds a copy of every second moment",
            "torch-adamw",
            _two_moments,
            step_all=_second_moment_copy,
        ),
        Optimizer(
            "adamw-fused",
            "torch AdamW, fused: no temporaries, step counters on the device",
            "torch-adamw",
            _two_moments_and_step,
        ),
        Optimizer(
            "adamw-8bit",
            "bitsandbytes AdamW8bit: two bytes a parameter and block scales",
            "bnb-optimizers",
            _two_moments_8bit,
            tables=(1024, 1024),
        ),
        Optimizer(
            "paged-adamw-8bit",
            "bitsandbytes PagedAdamW8bit: the same in managed memory, which may move to the host",
            "bnb-optimizers",
            _small_moments,
            paged=_paged_moments,
            tables=(1024, 1024),
        ),
        Optimizer("sgd", "torch SGD without momentum: no state", "torch-sgd", _nothing),
        Optimizer("sgd-momentum", "torch SGD with momentum: one state", "torch-sgd", _one_moment),
        Optimizer(
            "adafactor",
            "transformers Adafactor: row and column factors in fp32, no first moment",
            "transformers-adafactor",
            _factored,
            step_each=_adafactor_work,
        ),
        Optimizer("lion", "bitsandbytes Lion, 32 bit: one fp32 state", "bnb-optimizers", _one_fp32_moment),
    )
}
