"""What torch's allocator reserves for a step: a modelled figure, from a replay of the large allocations."""

from __future__ import annotations

from peftplan.memory.account import Account
from peftplan.units import MIB, round_up


def reserved_bytes(account: Account) -> int:
    """Peak of reserved memory; at least what is allocated, in whole segments."""
    return round_up(account.peak_allocated_bytes, 2 * MIB)
