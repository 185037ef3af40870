"""What fused kernels make of eager launches: a norm, a rotary embedding, an activation or a loss as one kernel.

Launches that stand one behind the other in one module, over tensors of one size, become one: it reads what the
first of them reads and writes what the last one writes, and what lies between stays in registers. In backward it
reads its saved input again instead of what eager kernels saved. Triton libraries leave adapters as they are;
torch.compile does not.
Source: liger-kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from peftplan.cost.kinds import kind_of
from peftplan.cost.parts import Parts

FUSED_KINDS = frozenset({"elementwise", "reduction"})
_ALIKE = 4  # sizes in one chain differ by less: halves of a head's dimension, fp32 beside 16 bits


class Launch(NamedTuple):
    """One launch of the played step: bytes are those it reads and writes."""

    phase: str
    op: str
    module: str
    dtype: str
    num_flop: int
    read: int
    written: int


def fused_launches(
    launches: Iterable[tuple[str, str, str, str, int, int, int]], parts: Parts, of_loss: bool, compiled: bool
) -> Iterator[Launch]:
    """The launches of one stretch of the tape as fused kernels run them."""

    def fusible(launch: Launch) -> bool:
        kind = kind_of(launch.op, launch.num_flop)
        return kind in FUSED_KINDS and (compiled or parts.of(launch.module, kind, of_loss) != "adapter")

    return fuse(map(Launch._make, launches), fusible)


def fuse(launches: Iterable[Launch], fusible: Callable[[Launch], bool]) -> Iterator[Launch]:
    """The launches in order, chains of fusible ones as one each."""
    chain: list[Launch] = []
    for launch in launches:
        if not fusible(launch):
            yield from _one(chain)
            chain = []
            yield launch
            continue
        if chain and not _belongs(launch, chain):
            yield from _one(chain)
            chain = []
        chain.append(launch)
    yield from _one(chain)


def _belongs(launch: Launch, chain: list[Launch]) -> bool:
    """Whether a launch goes on with a chain; rows of sums and tables of angles are small beside its tensors."""
    first, size = chain[0], max(one.written for one in chain)
    if (launch.phase, launch.module) != (first.phase, first.module):
        return False
    return launch.written * _ALIKE > size or launch.read * _ALIKE > size or launch.written * 1024 < size


def _one(chain: list[Launch]) -> Iterator[Launch]:
    """A chain as one launch."""
    if len(chain) < 2:
        yield from chain
        return
    first, last = chain[0], chain[-1]
    read = max(first.read, last.written) + (last.written if first.phase == "backward" else 0)
    yield Launch(first.phase, "fused", first.module, last.dtype, 0, read, last.written)
