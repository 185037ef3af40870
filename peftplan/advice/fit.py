"""`fit`: whether a run fits its card, the most that does, and what to change where it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from peftplan.advice.ask import Variants
from peftplan.advice.axes import NUMBERS, checked_axes, limits
from peftplan.advice.change_sets import change_sets
from peftplan.advice.front import front_of
from peftplan.advice.search import ALIGNMENT
from peftplan.answers import AxisLimit, ChangeSet, FitReport, Front
from peftplan.engines import Progress, estimate
from peftplan.errors import BadInput
from peftplan.request import Request

DEFAULT_AXES = ("micro_batch", "seq_len")


def fit(request: Request, axes: Sequence[str] | None = None, progress: Progress | None = None) -> FitReport:
    """Whether the run fits its card, and how far each axis can go: the others as asked.

    Of two axes the front is told too: combinations of which none can be raised. Without axes, the micro-batch
    and the sequence length are searched for, each alone. Where the run does not fit, sets of changes
    that make it fit are added.
    """
    if request.gpu is None:
        raise BadInput("fit asks what a GPU holds; name one with --gpu (see `peftplan gpus`)")
    variants = Variants(request)
    asked = variants.answer({})
    assert asked is not None
    assert asked.gpu is not None
    chosen = checked_axes(tuple(DEFAULT_AXES if axes is None else axes), asked)
    tell = progress or _untold
    tell(0.0, "what to change")
    sets = () if asked.gpu.fits else tuple(change_sets(variants, asked))
    found: list[AxisLimit] = []
    for number, axis in enumerate(chosen, start=1):
        tell(number / (len(chosen) + 2), f"largest {axis}")
        found += limits(variants, axis)
    tell((len(chosen) + 1) / (len(chosen) + 2), "front")
    front = front_of(variants, chosen) if axes is not None and len(chosen) > 1 else None
    return FitReport.model_construct(
        fits=asked.gpu.fits,
        request=asked.request,
        estimate=estimate(request),
        changes=sets[0].changes if sets else (),
        axes=tuple(found),
        front=front,
        sets=sets,
        notes=tuple(_notes(found, front, sets)),
    )


def _untold(done: float, label: str) -> None:
    """Progress that nobody asked for."""


def _notes(found: Sequence[AxisLimit], front: Front | None, sets: Sequence[ChangeSet]) -> Iterator[str]:
    """What has to be said of the searches."""
    if any(limit.axis in NUMBERS for limit in found):
        yield (
            f"a largest value fits; the value above it and the next multiple of {ALIGNMENT} do not, and those "
            "further above were not tried one by one"
        )
    if any(limit.axis == "method" for limit in found):
        yield "the largest method is the one that trains most parameters"
    for limit in found:
        most, value = limit.advised_limit, limit.value
        if most is not None and isinstance(value, int) and value > most:
            yield f"{value:,} tokens fit, but the model was made for {most:,} positions"
    if front is not None:
        gone_through, searched = sorted(front.axes, key=lambda axis: axis in NUMBERS)
        values = "powers of two, and what was asked, of" if gone_through in NUMBERS else "every"
        yield f"the largest {searched} is searched for beside {values} {gone_through}"
    if sets:
        yield (
            "changes: the least risk first, then the least time, of the sets that were tried; smaller "
            "micro-batches keep a step's batch by more of them"
        )
