"""bitsandbytes' optimizers: 32 and 8 bits, kept on the device or paged.

States of one kernel a tensor; small tensors stay in fp32, and pages are only made for large ones.

Source: lion, bnb-optimizers (optim/optimizer.py: min_8bit_size, get_state_buffer; ademamix.py).
"""

from __future__ import annotations

from typing import Any

from peftplan.optimizers.row import Optimizer, States, Weight

# bitsandbytes keeps small tensors in fp32: `min_8bit_size` of its optimizers.
MIN_8BIT_SIZE = 4096
BLOCK_8BIT = 256
# and smaller states than this out of managed memory: `get_state_buffer`.
MIN_PAGED_SIZE = 100_000
_MAP_BYTES = 1024  # 256 values in fp32

# A state: its name, and how many values it has for each of the tensor's.
Kept = tuple[tuple[str, int], ...]

_ADAM: Kept = (("first moment", 1), ("second moment", 1))
_ADEMAMIX: Kept = (("fast and slow first moment", 2), ("second moment", 1))
_LION: Kept = (("momentum", 1),)
_RMSPROP: Kept = (("second moment", 1),)


def in_eight_bits(weight: Weight) -> bool:
    """Whether an 8-bit optimizer keeps this tensor's states in 8 bits."""
    return weight.numel >= MIN_8BIT_SIZE and not weight.wide


def _values(kept: Kept, weight: Weight, eight_bit: bool) -> States:
    size = 1 if eight_bit and in_eight_bits(weight) else 4
    return [(name, times * size * weight.numel) for name, times in kept]


def _scales(kept: Kept, weight: Weight) -> States:
    blocks = -(-weight.numel // BLOCK_8BIT)
    return [(f"block scales of the {name}", 4 * times * blocks) for name, times in kept]


def _row(
    name: str,
    summary: str,
    kept: Kept,
    eight_bit: bool = False,
    paged: bool = False,
    aliases: tuple[str, ...] = (),
) -> Optimizer:
    """One optimizer; maps are moved to the device by the first 8-bit state, one for each kind of values."""

    def in_pages(weight: Weight) -> bool:
        return paged and weight.numel >= MIN_PAGED_SIZE

    def states(weight: Weight, options: Any) -> States:
        values = [] if in_pages(weight) else _values(kept, weight, eight_bit)
        if not eight_bit or not in_eight_bits(weight):
            return values
        scales = _scales(kept, weight)
        # in the order in which they are made: a value, then its scales
        return [one for pair in zip(values, scales) for one in pair] if values else scales

    def pages(weight: Weight, options: Any) -> States:
        return _values(kept, weight, eight_bit) if in_pages(weight) else []

    def tables(weight: Weight, options: Any) -> tuple[int, ...]:
        return (_MAP_BYTES,) * len(kept) if eight_bit and in_eight_bits(weight) else ()

    return Optimizer(name, summary, "bnb-optimizers", states, aliases, paged=pages, tables=tables)


_PAGED = "in managed memory, which may move to the host"

ADAMW_8BIT = _row(
    "adamw-8bit",
    "bitsandbytes AdamW8bit: two bytes a parameter and block scales",
    _ADAM,
    eight_bit=True,
    aliases=("adamw-bnb-8bit",),
)
BITSANDBYTES = (
    ADAMW_8BIT,
    _row(
        "paged-adamw-8bit",
        f"bitsandbytes PagedAdamW8bit: two bytes a parameter {_PAGED}",
        _ADAM,
        eight_bit=True,
        paged=True,
    ),
    _row(
        "paged-adamw",
        f"bitsandbytes PagedAdamW32bit: two fp32 states {_PAGED}",
        _ADAM,
        paged=True,
        aliases=("paged-adamw-32bit",),
    ),
    _row("ademamix", "bitsandbytes AdEMAMix, 32 bit: three fp32 states", _ADEMAMIX),
    _row("ademamix-8bit", "bitsandbytes AdEMAMix8bit: three bytes a parameter and block scales", _ADEMAMIX, True),
    _row(
        "paged-ademamix",
        f"bitsandbytes PagedAdEMAMix: three fp32 states {_PAGED}",
        _ADEMAMIX,
        paged=True,
        aliases=("paged-ademamix-32bit",),
    ),
    _row("paged-ademamix-8bit", f"bitsandbytes PagedAdEMAMix8bit: three bytes {_PAGED}", _ADEMAMIX, True, True),
    _row("lion", "bitsandbytes Lion, 32 bit: one fp32 state", _LION, aliases=("lion-32bit",)),
    _row("lion-8bit", "bitsandbytes Lion8bit: one byte a parameter and block scales", _LION, True),
    _row(
        "paged-lion",
        f"bitsandbytes PagedLion32bit: one fp32 state {_PAGED}",
        _LION,
        paged=True,
        aliases=("paged-lion-32bit",),
    ),
    _row("paged-lion-8bit", f"bitsandbytes PagedLion8bit: one byte a parameter {_PAGED}", _LION, True, True),
    _row(
        "rmsprop-bnb",
        "bitsandbytes RMSprop, 32 bit: one fp32 state",
        _RMSPROP,
        aliases=("rmsprop-bnb-32bit",),
    ),
    _row("rmsprop-bnb-8bit", "bitsandbytes RMSprop8bit: one byte a parameter and block scales", _RMSPROP, True),
)
