"""Where the closed form and the trace of one run differ: the tensors alive at their peaks, paired off.

Names of modules and operations differ a little between the two, so tensors are paired by part of the peak,
place and size first, then by part and size alone; what finds no partner is a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import NamedTuple

from peftplan.memory.account import AliveKinds
from peftplan.report import Difference

_WRAPPER = "base_model.model."
_LEVELS_OF_PEFT = (".default", ".base_layer")


class _Tensors(NamedTuple):
    """Tensors alike, which only one engine has (so far)."""

    part: str
    place: str
    operation: str
    tensor: str
    each_bytes: int
    number: int


def differences(closed: AliveKinds, traced: AliveKinds, most: int = 10) -> tuple[Difference, ...]:
    """The largest differences at the two peaks, in parts that both list tensor by tensor."""
    parts = set(closed)
    left = [_listed(closed), [tensors for tensors in _listed(traced) if tensors.part in parts]]
    for key in (_by_place, _by_size):
        left = _without_pairs(left[0], left[1], key)
    found = [(0, tensors) for tensors in left[0]] + [(1, tensors) for tensors in left[1]]
    found.sort(key=lambda one: -one[1].each_bytes * one[1].number)
    return tuple(_difference(side, tensors) for side, tensors in found[:most])


def _listed(kinds: AliveKinds) -> list[_Tensors]:
    return list(_tensors(kinds))


def _tensors(kinds: AliveKinds) -> Iterator[_Tensors]:
    for part, items in kinds.items():
        for (place, operation, dtype, shape), (count, num_bytes) in items.items():
            where = place.removeprefix(_WRAPPER)
            for level in _LEVELS_OF_PEFT:
                where = where.replace(level, "")
            tensor = f"{dtype}[{', '.join(map(str, shape))}]"
            yield _Tensors(part, where, operation.removeprefix("aten::"), tensor, num_bytes // count, count)


def _by_place(tensors: _Tensors) -> Hashable:
    return tensors.part, tensors.place, tensors.each_bytes


def _by_size(tensors: _Tensors) -> Hashable:
    return tensors.part, tensors.each_bytes


def _without_pairs(
    first: list[_Tensors], second: list[_Tensors], key: Callable[[_Tensors], Hashable]
) -> list[list[_Tensors]]:
    """Both lists without what the other has too, by this key."""
    counts: list[dict[Hashable, int]] = [{}, {}]
    for side, tensors in enumerate((first, second)):
        for one in tensors:
            counts[side][key(one)] = counts[side].get(key(one), 0) + one.number
    left = []
    for side, tensors in enumerate((first, second)):
        paired = {k: min(n, counts[1 - side].get(k, 0)) for k, n in counts[side].items()}
        kept = []
        for one in tensors:
            gone = min(one.number, paired[key(one)])
            paired[key(one)] -= gone
            if one.number > gone:
                kept.append(one._replace(number=one.number - gone))
        left.append(kept)
    return left


def _difference(side: int, tensors: _Tensors) -> Difference:
    num_bytes = tensors.each_bytes * tensors.number
    return Difference.model_construct(
        name=tensors.part,
        module=tensors.place,
        operation=tensors.operation,
        tensor=f"{tensors.number} x {tensors.tensor}",
        bytes=(0, num_bytes) if side else (num_bytes, 0),
    )
