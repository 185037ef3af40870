"""The values of a grid as they are typed: `rank=8,16,32`, `seq_len=512:8192:512`, `rank=4..256`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from peftplan.cli.options import flag_of, given_fields, validated
from peftplan.errors import BadInput, shown
from peftplan.request import Request

LEFT_OPEN = "default"  # the word for a field that is left open
MAX_VALUES = 10**5  # of one field
_LISTS = ("targets", "modules_to_save")
_NAME = re.compile(r"[\w.\-]+")


def axes_from(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Fields and their values, from the words behind each `--over`."""
    axes: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_").lower()
        if not equals or not name:
            raise BadInput(f"--over {shown(text)} is not allowed; give a field and values, such as rank=8,16,32")
        if name not in Request.model_fields or name == "engine":
            raise BadInput(f"--over {name} is no field of a request that a sweep varies{_near(name)}")
        if name in axes:
            raise BadInput(f"--over {name} is given twice; put all its values into one")
        axes[name] = list(_values(name, values))
        if not axes[name]:
            raise BadInput(f"--over {name}= has no values; give some, such as {name}={_example(name)}")
    if not axes:
        raise BadInput("a sweep varies at least one field; give --over FIELD=VALUES, such as --over rank=8,16,32")
    return axes


def _near(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, Request.model_fields, 1)
    known = ", ".join(field for field in Request.model_fields if field != "engine")
    return f"; did you mean {near[0]}?" if near else f"; there are {known}"


def _example(name: str) -> str:
    return "1,2,4" if Request.model_fields[name].annotation in (int, int | None) else "A,B"


def _values(name: str, text: str) -> Iterator[Any]:
    count = 0
    for word in text.split(","):
        for value in _of_word(name, word.strip()):
            count += 1
            if count > MAX_VALUES:
                raise BadInput(f"--over {name}: more than {MAX_VALUES:,} values; give fewer, or a larger step")
            yield value


def _of_word(name: str, word: str) -> Iterator[Any]:
    """The values that one word between commas stands for."""
    if not word:
        return
    ends = re.fullmatch(r"([^.:]+)\.\.([^.:]+)", word)
    steps = re.fullmatch(r"([^:]+):([^:]+)(?::([^:]+))?", word)
    number = Request.model_fields[name].annotation in (int, int | None)
    if number and ends:
        low, high = (_value(name, end) for end in ends.groups())
        _check_order(name, word, low, high)
        while low <= high:
            yield low
            low *= 2
    elif number and steps:
        low, high = (_value(name, end) for end in steps.groups()[:2])
        step = steps.group(3)
        if step is not None and not re.fullmatch(r"0*[1-9][0-9]{0,15}", step):
            raise BadInput(f"--over {name}={word}: {shown(step)} is no step; give a whole number from 1")
        _check_order(name, word, low, high)
        yield from range(low, high + 1, int(step or 1))
    else:
        yield _value(name, word)


def _check_order(name: str, word: str, low: int, high: int) -> None:
    if low > high:
        raise BadInput(f"--over {name}={word}: a range goes from the smaller value to the larger")


def _value(name: str, word: str) -> Any:
    """One value as the field takes it."""
    field = Request.model_fields[name]
    if word.lower() == LEFT_OPEN and not field.is_required():
        return field.get_default()
    if name in _LISTS and "+" in word and all(_NAME.fullmatch(part) for part in word.split("+")):
        fields: dict[str, Any] = {name: word.split("+")}
    else:
        try:
            fields = given_fields({name: word})
        except BadInput as error:
            flag = flag_of(name)
            raise BadInput(f"--over {name}{str(error).removeprefix(flag)}") from None
    made = validated({"model": "-", **fields}, "--over ", typed={name: word})
    return getattr(made, name)
