"""Which shallow models stand for a deep one: blocks in the same mix, the same first and the same last ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_FIRST, _LAST = 2, 2  # blocks at either end that have a neighbour of another kind: the embeddings, the head


@dataclass(frozen=True, slots=True)
class Depths:
    """Two depths to trace, `period` blocks apart, and where the blocks begin that are repeated."""

    shallow: int
    deeper: int
    first: int  # of the blocks that are repeated
    period: int


def choose_depths(kinds: Sequence[int]) -> Depths | None:
    """Depths that stand for a model with blocks of these kinds; None where tracing it all is less work.

    From some block on, the kinds must repeat with a period; a shallow model is the beginning of the deep one,
    cut whole periods before its end, so that both end alike.
    """
    depth = len(kinds)
    for period in range(1, depth // 2):
        start = _periodic_from(kinds, period)
        first = max(_FIRST, start + 1)
        shallow = first + period + _LAST
        shallow += (depth - shallow) % period
        deeper = shallow + period
        if shallow + deeper < depth:
            return Depths(shallow, deeper, first, period)
        if start == 0:
            return None
    return None


def _periodic_from(kinds: Sequence[int], period: int) -> int:
    """The first block from which on every one is of the kind of that a period later."""
    start = len(kinds) - period
    while start > 0 and kinds[start - 1] == kinds[start - 1 + period]:
        start -= 1
    return start
