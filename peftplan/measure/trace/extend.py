"""A deep model's recording from those of two shallow ones, which check each other."""

from __future__ import annotations

from collections.abc import Iterator

from peftplan.measure.trace.depth import Depths
from peftplan.measure.trace.recording import Recording
from peftplan.measure.trace.repeat import NotRegularError, Repeater


def extended(shallow: Recording, deeper: Recording, path: str, depths: Depths, depth: int) -> Recording:
    """The recording of a model of `depth` blocks from those of two shallow ones.

    The shallow one, extended by a period, must be the deeper one, event by event; what lies outside the
    blocks may have grown, and grows on as much with every period (lists over all tensors). Raises
    NotRegularError where that is not so.
    """
    made = Repeater(shallow, path, depths.shallow, depths.first, depths.period).repeated(1)
    longer = Repeater(deeper, path, depths.deeper, depths.first, depths.period)
    growth = _growth(made, longer)
    times = (depth - depths.deeper) // depths.period
    found = longer.repeated(times, growth)
    found.facts = {
        name: value + (value - shallow.facts[name]) * times if _counts(name, value) else value
        for name, value in deeper.facts.items()
    }
    return found


def _counts(name: str, value: object) -> bool:
    return name.startswith("num_") or name.endswith("_bytes")


def _growth(made: Recording, longer: Repeater) -> dict[int, int]:
    """By how much storages outside the blocks are larger than in a recording that is the same otherwise."""
    real = longer.source
    if len(made.sizes) != len(real.sizes) or list(_settled(made)) != list(_settled(real)):
        raise NotRegularError("the deeper model does something else")
    growth = {}
    for number, (size, wanted) in enumerate(zip(made.sizes, real.sizes)):
        if made.text(made.modules, number) != real.text(real.modules, number):
            raise NotRegularError("the deeper model does it elsewhere")
        if size != wanted:
            if isinstance(longer.named[number], int) or longer.repeats(longer.owners[number]):
                raise NotRegularError("the blocks of the deeper model are others")
            growth[number] = wanted - size
    return growth


def _settled(recording: Recording) -> Iterator[list[int]]:
    """Births in order, and between them the frees, whose own order changes nothing."""
    frees: list[int] = []
    for code in recording.events:
        if code > 0:
            yield sorted(frees)
            frees = []
        else:
            frees.append(code)
    yield sorted(frees)
