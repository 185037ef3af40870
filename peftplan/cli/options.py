"""The options of a run: derived from the fields of `Request`, whose types, bounds and words stand there."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo

from peftplan.cli.spec import Argument, Option
from peftplan.errors import BadInput
from peftplan.request import COUNTED, Request

SHORT = {"micro_batch": "-b", "seq_len": "-s", "rank": "-r"}
# Fields that are given piece by piece, under the name of one piece.
PIECES = {
    "method_options": "--method-option",
    "quant_options": "--quant-option",
    "optimizer_options": "--optimizer-option",
}
_MODEL = Request.model_fields["model"]
Options = TypeVar("Options", bound=BaseModel)  # a model of options of a command's own
_LONGEST_NUMBER = 40  # digits; what is longer is no count of anything
_TRUE_OR_FALSE = "on or off"


def flag_of(field: str) -> str:
    """`seq_len` as it is written on the command line."""
    return "MODEL" if field == "model" else PIECES.get(field, "--" + field.replace("_", "-"))


def request_options(without: Collection[str] = (), of: type[BaseModel] = Request) -> tuple[Option, ...]:
    """One option for each field of a request, or of another model of options, but the model."""
    return tuple(
        _option(name, field) for name, field in of.model_fields.items() if name != "model" and name not in without
    )


def model_argument() -> Argument:
    """MODEL, as the request describes it."""
    return Argument("model", _MODEL.description or "", complete=model_names)


def request_from(given: Mapping[str, Any], fields: Mapping[str, Any] | None = None) -> Request:
    """The request that the given words make; `fields` are set beside them."""
    return validated({**given_fields(given), **(fields or {})}, typed=given)


def options_from(given: Mapping[str, Any], of: type[Options]) -> Options:
    """Options beside a request's, of a model of their own, that the given words make."""
    fields = {name: _value(name, text, of) for name, text in given.items() if name in of.model_fields}
    try:
        return of(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        if first["type"] == "missing":
            raise BadInput(f"{flag_of(name)} is missing; give {allowed(of.model_fields[name])}") from None
        raise _not_allowed(flag_of(name), given.get(name, first["input"]), of.model_fields[name]) from None


def validated(fields: Mapping[str, Any], where: str = "", typed: Mapping[str, Any] | None = None) -> Request:
    """A request of these fields; one that is refused is named, as it was typed, with what is allowed."""
    try:
        return Request(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if name not in Request.model_fields:
            known = ", ".join(Request.model_fields)
            raise BadInput(f"{where}{name} is no field of a request; there are {known}") from None
        if first["type"] == "missing":
            raise BadInput(f"{where}{name} is missing from the request") from None
        label = name if where else flag_of(name)
        value = (typed or {}).get(name, first["input"])
        raise _not_allowed(where + label, value, Request.model_fields[name]) from None


def given_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request among what was given, as values."""
    return {name: _value(name, text) for name, text in given.items() if name in Request.model_fields}


def allowed(field: FieldInfo) -> str:
    """What a field takes, in words: `a whole number from 1 to 1000000`, `one of bf16, fp32`."""
    kind, choices = _kind(field)
    if choices:
        return "one of " + ", ".join(map(str, choices)) if len(choices) > 1 else str(choices[0])
    if kind is bool:
        return _TRUE_OR_FALSE
    if _in_words(field) and COUNTED not in field.metadata:
        return "a size, such as 50MB or 24GiB"
    if kind in (int, float):
        return _number_words(kind, field)
    return field.description or "text"


# ---- from a field to an option


def _option(name: str, field: FieldInfo) -> Option:
    kind, choices = _kind(field)
    flags = (flag_of(name), *((SHORT[name],) if name in SHORT else ()))
    if kind is bool:
        return Option(name, flags, lambda: _help(field), True, f"--no-{flags[0][2:]}")
    metavar = "[" + "|".join(map(str, choices)) + "]" if choices else _METAVARS.get(kind, "TEXT")
    if _in_words(field):
        metavar = "COUNT" if COUNTED in field.metadata else "SIZE"
    return Option(name, flags, lambda: _help(field), False, "", metavar, _completion(name, choices), kind is dict)


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    kind, choices = _kind(field)
    if kind in (int, float) and not choices:
        text += f" ({_bounds(field)})"
    default = field.default
    if field.is_required() or default is None or default in ([], {}):
        return text
    shown = ("on" if default else "off") if isinstance(default, bool) else default
    return f"{text}; default {shown:g}" if isinstance(shown, float) else f"{text}; default {shown}"


def _kind(field: FieldInfo) -> tuple[Any, tuple[Any, ...]]:
    """The type of a field apart from None, and its choices where it has some."""
    annotation: Any = field.annotation
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        annotation = members[0]
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        return type(choices[0]), choices
    return get_origin(annotation) or annotation, ()


def _number_words(kind: Any, field: FieldInfo) -> str:
    words = _bounds(field)
    if words[0].isdigit() and " " not in words:
        return words
    return f"{'a whole number' if kind is int else 'a number'} {words}"


def _bounds(field: FieldInfo) -> str:
    bounds = {
        name: getattr(item, name)
        for item in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(item, name, None) is not None
    }
    if "ge" in bounds and bounds["ge"] == bounds.get("le"):
        return str(bounds["ge"])
    words = []
    for name, word in (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "below")):
        if name in bounds:
            words.append(f"{word} {bounds[name]:,}")
    return " ".join(words)


_METAVARS: dict[Any, str] = {int: "INTEGER", float: "NUMBER", list: "NAMES", dict: "NAME=VALUE"}


# ---- from a word to a value


def _in_words(field: FieldInfo) -> bool:
    """Whether the field itself reads what people write for a number: 50M, 24GiB."""
    return any(isinstance(item, BeforeValidator) for item in field.metadata)


def _value(name: str, text: Any, of: type[BaseModel] = Request) -> Any:
    field = of.model_fields[name]
    kind, choices = _kind(field)
    if kind is dict and name in PIECES and isinstance(text, list):
        return dict(_piece(name, piece) for piece in text)
    if not isinstance(text, str) or name == "model":
        return text
    word = text.strip()
    if choices:
        known = {_same(str(choice)): choice for choice in choices}
        if _same(word) not in known:
            raise _not_allowed(flag_of(name), text, field)
        return known[_same(word)]
    if kind is list:
        return [part.strip() for part in word.split(",") if part.strip()]
    if _in_words(field):  # 50M: the request knows what it stands for
        return word
    if kind is int:
        if not re.fullmatch(r"[+-]?[0-9]+", word) or len(word) > _LONGEST_NUMBER:
            raise _not_allowed(flag_of(name), text, field)
        return int(word)
    if kind is float:
        try:
            return float(word)
        except ValueError:
            raise _not_allowed(flag_of(name), text, field) from None
    return text


def _piece(field: str, text: str) -> tuple[str, str]:
    """`NAME=VALUE` as name and value."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise BadInput(f"{flag_of(field)} {text or repr('')} is not allowed; give NAME=VALUE, such as init_r=12")
    return name.strip().lower().replace("-", "_"), value.strip()


def counted(flag: str, text: str | None, most: int) -> int | None:
    """The number that an option of a command's own was given; None where it was not given."""
    if text is None:
        return None
    word = text.strip()
    if (
        not re.fullmatch(r"[+-]?[0-9]+", word, re.ASCII)
        or len(word) > _LONGEST_NUMBER
        or not 1 <= int(word) <= most
    ):
        shown = text if len(text) <= _LONGEST_NUMBER else text[:_LONGEST_NUMBER] + "..."
        raise BadInput(f"{flag} {shown or repr('')} is not allowed; give a whole number from 1 to {most:,}")
    return int(word)


def _same(word: str) -> str:
    return word.lower().replace("_", "-")


def _not_allowed(label: str, value: Any, field: FieldInfo) -> BadInput:
    shown = str(value) if isinstance(value, str) else repr(value)
    shown = shown if len(shown) <= _LONGEST_NUMBER else shown[:_LONGEST_NUMBER] + "..."
    _, choices = _kind(field)
    hint = ""
    if choices and isinstance(value, str):
        from difflib import get_close_matches

        near = get_close_matches(_same(value), [str(choice) for choice in choices], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
    return BadInput(f"{label} {shown or repr('')} is not allowed; give {allowed(field)}{hint}")


# ---- completion


def _completion(name: str, choices: Sequence[Any]) -> Callable[[], Sequence[str]] | None:
    if choices:
        return lambda: [str(choice) for choice in choices]
    return {"method": method_names, "optimizer": optimizer_names, "gpu": gpu_names}.get(name)


def model_names() -> list[str]:
    """Names of models to offer: an id, and the first alias."""
    from peftplan.catalog import all_models

    return [name for record in all_models() for name in (*record.aliases[:1], record.id)]


def gpu_names() -> list[str]:
    """Keys of GPUs."""
    from peftplan.catalog import all_gpus

    return [record.key for record in all_gpus()]


def method_names() -> list[str]:
    """Names of methods."""
    from peftplan.methods import METHODS

    return list(METHODS)


def optimizer_names() -> list[str]:
    """Names of optimizers."""
    from peftplan.optimizers import ALIASES, OPTIMIZERS

    return [*OPTIMIZERS, *ALIASES]
