"""The axes that `fit` goes along: what a request can have more of, until its card is full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from peftplan.advice.ask import Fields, Variants
from peftplan.advice.search import largest
from peftplan.answers import AxisLimit, Choice
from peftplan.catalog import all_models
from peftplan.errors import BadInput
from peftplan.methods import METHODS
from peftplan.report import Report
from peftplan.request import Request
from peftplan.resolve import find_requested

# Fields that are numbers, and from where their powers of two are worth listing.
NUMBERS = {"micro_batch": 1, "seq_len": 128, "rank": 1}
CHOICES = ("model", "method")
AXES = (*NUMBERS, *CHOICES)
MOST_AXES = 2
LEAST_BITS_PER_PARAM = 2  # of any storage format: models whose weights alone exceed a card are not tried
ROUGHLY = 32  # a rough answer is off by about this part of it


def checked_axes(names: tuple[str, ...], asked: Report) -> tuple[str, ...]:
    """Names of axes, each once; one that the request has no use for is refused."""
    wanted = tuple(dict.fromkeys(name.strip().lower().replace("-", "_") for name in names))
    unknown = [name for name in wanted if name not in AXES]
    if unknown or not wanted:
        raise BadInput(f"--axis {', '.join(unknown) or repr('')} is unknown; give some of {', '.join(AXES)}")
    if len(wanted) > MOST_AXES:
        raise BadInput(f"--axis {','.join(wanted)}: a front is of two axes; give one or two")
    if "rank" in wanted and not has_adapters(asked):
        raise BadInput(
            f"--axis rank: --method {asked.method.kind} adds no adapters, and a rank is theirs; "
            "choose another method or axis"
        )
    if "model" in wanted and len(wanted) > 1:  # what is left are two numbers, or a method and one
        raise BadInput("--axis model goes alone: every model has its own front; give the other axes for one MODEL")
    return wanted


def has_adapters(asked: Report) -> bool:
    """Whether a rank means anything to the run."""
    return asked.method.adapter_checkpoint_bytes > 0


def limits(variants: Variants, axis: str) -> Iterator[AxisLimit]:
    """What an axis alone comes to; a model has two answers, of its own family and of all."""
    if axis in NUMBERS:
        yield _number_limit(variants, axis)
    elif axis == "method":
        yield _methods(variants)
    else:
        yield from _models(variants)


def _number_limit(variants: Variants, axis: str) -> AxisLimit:
    """The largest value of a number that fits, all else as asked."""
    value, most = largest_fitting(variants, axis, {}), most_of(axis)
    above = None if value == most else (value or 0) + 1
    return AxisLimit.model_construct(
        axis=axis,
        among=f"from 1 to {most:,}",
        asked=int(variants.asked(axis)),
        value=value,
        sure_value=None if value is None else _sure_value(variants, axis, value),
        headroom_bytes=None if value is None else _headroom(variants.answer({axis: value})),
        next_value=above,
        next_short_bytes=None if above is None else _short(variants.answer({axis: above})),
        advised_limit=variants.plan.model.max_seq_len if axis == "seq_len" else None,
    )


def largest_fitting(variants: Variants, axis: str, held: Fields, guess: int | None = None) -> int | None:
    """The largest value that fits, from a good guess on; without one, from where it lies roughly."""
    most, step = most_of(axis), 1
    if guess is None:
        asked = int(variants.asked(axis))
        guess = largest(lambda value: variants.fits({**held, axis: value}, roughly=True), asked, most) or 1
        step = max(1, guess // ROUGHLY)
    return largest(lambda value: variants.fits({**held, axis: value}), max(guess, 1), most, step)


def _sure_value(variants: Variants, axis: str, value: int) -> int | None:
    """A value that fits for sure: the largest roughly, and less of it until it does."""
    sure = largest(lambda n: variants.fits_surely({axis: n}, roughly=True), value, value) or 1
    while not variants.fits_surely({axis: sure}):
        if sure == 1:
            return None
        sure -= max(1, sure // ROUGHLY)
    return sure


def most_of(axis: str) -> int:
    """The upper bound of a request's field."""
    bounds = [bound.le for bound in Request.model_fields[axis].metadata if hasattr(bound, "le")]
    return int(bounds[0])


def _models(variants: Variants) -> Iterator[AxisLimit]:
    """The largest model of the same family, and of the catalogue: all that have more parameters do not fit."""
    room = variants.plan.gpu.usable_bytes if variants.plan.gpu is not None else 0
    within = [record for record in all_models() if record.num_params * LEAST_BITS_PER_PARAM <= 8 * room]
    records = sorted(within, key=lambda record: record.num_params)
    family = find_requested(variants.request.model).config.get("model_type")
    alike = [record.id for record in records if record.config.get("model_type") == family]
    if alike:
        yield _choice_limit(variants, "model", f"{family} models of the catalogue", alike)
    yield _choice_limit(variants, "model", "models of the catalogue", [record.id for record in records])


def _methods(variants: Variants) -> AxisLimit:
    """The method that trains most, on the widest base, of those that fit."""
    answers = {name: variants.rough({"method": name}) for name in METHODS}

    def reach(name: str) -> tuple[int, int]:
        found = answers[name]
        return (0, 0) if found is None else (found.method.num_trainable_params, found.memory.resident.weights)

    names = sorted(METHODS, key=reach)
    limit = _choice_limit(variants, "method", ", ".join(names), names)
    return limit.model_copy(update={"tried": tuple(_choice(variants, "method", name) for name in reversed(names))})


def _choice_limit(variants: Variants, axis: str, among: str, names: Sequence[str]) -> AxisLimit:
    """The last of the names that fits; they are tried from the last on, until one fits for sure."""
    tried: list[Choice] = []
    for name in reversed(names):
        tried.append(_choice(variants, axis, name))
        if tried[-1].fits and tried[-1].certain:
            break
    fitting = next((index for index, choice in enumerate(tried) if choice.fits), None)
    unfit = [choice for choice in tried[:fitting] if choice.fits is False]
    found = None if fitting is None else tried[fitting]
    above = None if not unfit else _short(variants.answer({axis: unfit[-1].name}))
    return AxisLimit.model_construct(
        axis=axis,
        among=among,
        asked=variants.asked(axis),
        value=found.name if found else None,
        sure_value=tried[-1].name if tried and tried[-1].certain and tried[-1].fits else None,
        headroom_bytes=_headroom(variants.answer({axis: found.name})) if found else None,
        next_value=unfit[-1].name if unfit else None,
        next_short_bytes=above,
        advised_limit=None,
        tried=tuple(tried),
    )


def _choice(variants: Variants, axis: str, name: str) -> Choice:
    """Whether a model or a method fits; by how much only roughly."""
    gpu = getattr(variants.rough({axis: name}), "gpu", None)
    if gpu is None:
        return Choice.model_construct(name=name, fits=None, certain=None, headroom_bytes=None)
    fits = variants.fits({axis: name})
    return Choice.model_construct(
        name=name,
        fits=fits,
        certain=variants.fits_surely({axis: name}) if fits else gpu.certain,
        headroom_bytes=max(gpu.headroom_bytes, 0) if fits else min(gpu.headroom_bytes, -1),
    )


def _headroom(answer: Report | None) -> int | None:
    return None if answer is None or answer.gpu is None else answer.gpu.headroom_bytes


def _short(answer: Report | None) -> int | None:
    headroom = _headroom(answer)
    return None if headroom is None else -headroom
