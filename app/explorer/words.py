"""A plan as the words of a command line, by field: the form, the link, the command and the snippet speak them.

A field that is left out takes its default. What is bad in a word is refused by the same reader, in the same
line, as on the command line.
"""

from __future__ import annotations

import json
import shlex
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NoBase64
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from peftplan.catalog import find_model
from peftplan.catalog.lookup import MAX_CONFIG_BYTES, parse_config
from peftplan.cli.options import flag_of, request_from, request_options
from peftplan.cli.spec import Option
from peftplan.errors import BadInput, NotFound
from peftplan.request import Request

Words = dict[str, str]

ON, OFF = "on", "off"
CONFIG = "config"  # a config of one's own, packed; in the place of `model`
CONFIG_FILE = "config.json"  # what it is called in a command
# Not asked for here: a trace needs torch, and a file's path would be one of the machine that serves the page.
NOT_OFFERED = ("engine", "data", "chars_per_token", "packing", "group_by_length")
PIECE = ";"  # between the pieces of an option that may come several times
# Longer texts are kept for the session, but no link carries them.
LONGEST_IN_LINK = 6000


@lru_cache(maxsize=1)
def options() -> dict[str, Option]:
    """The options of a request that the form offers, by field."""
    return {option.name: option for option in request_options(without=NOT_OFFERED)}


def request_of(words: Mapping[str, str]) -> Request:
    """The request that the words make; raises BadInput or NotFound in one line."""
    given = {name: word for name, word in words.items() if name not in ("model", CONFIG)}
    for name in given:
        if name not in options():
            why = "is not offered by the explorer" if name in NOT_OFFERED else "is no field of a request"
            raise BadInput(f"{name} {why}; there are model, {', '.join(options())}")
    pieces = {name: word.split(PIECE) for name, word in given.items() if options()[name].many}
    return request_from({**given, **pieces}, {"model": _model(words)})


def _model(words: Mapping[str, str]) -> str | dict[str, Any]:
    """A config, or a name: the catalogue's, or one of the Hub - no path of the machine that serves the page."""
    if CONFIG in words:
        return unpacked(words[CONFIG])
    name = words.get("model", "")
    if find_model(name) is None and (name.count("/") != 1 or name[:1] in "./~" or "\\" in name or ".." in name):
        from peftplan.catalog.model_records import nearest_models

        near = nearest_models(name)
        hint = f"; nearest in the catalogue: {', '.join(near)}" if near else ""
        raise NotFound(
            f"{name[:80] or repr('')} is no name of the catalogue{hint}; paste or upload another model's config"
        )
    return name


# ---- a config in a link


def packed(config: Mapping[str, Any]) -> str:
    """A config as a word of a link."""
    text = json.dumps(config, separators=(",", ":"), ensure_ascii=False)
    return urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode().rstrip("=")


def unpacked(word: str) -> dict[str, Any]:
    """The config that a link carries; one that was cut or is too long is refused."""
    if not word:
        raise BadInput("no config is given yet; paste or upload a model's config.json")
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(urlsafe_b64decode(word + "=" * (-len(word) % 4)), MAX_CONFIG_BYTES)
    except (NoBase64, ValueError, zlib.error):
        raise BadInput("the config in this link is damaged; paste or upload it again") from None
    if not reader.eof:
        raise BadInput("the config in this link is cut or too long; paste or upload it again")
    return parse_config(text, "the config in this link")


# ---- what a plan is elsewhere


def arguments(words: Mapping[str, str]) -> Iterator[str]:
    """The words as the command line has them, model first."""
    yield CONFIG_FILE if CONFIG in words else words.get("model", "")
    for name, option in options().items():
        if name in words:
            yield from _argument(option, words[name])


def _argument(option: Option, word: str) -> Iterable[str]:
    if option.switch:
        return [option.flags[0] if word == ON else option.off]
    if option.many:
        return [part for piece in word.split(PIECE) for part in (option.flags[0], piece)]
    if word.startswith("-"):
        return [f"{option.flags[0]}={word}"]
    return [option.flags[0], word]


def command(name: str, words: Mapping[str, str], *more: str) -> str:
    """The command line that gives the same answer."""
    return shlex.join(["peftplan", name, *arguments(words), *more])


def python_request(words: Mapping[str, str], indent: str = "") -> str:
    """The request as a Python expression."""
    request = request_of(words)
    lines = [f"model={json.dumps(CONFIG_FILE if CONFIG in words else words['model'])}"]
    lines += [f"{name}={_literal(getattr(request, name))}" for name in options() if name in words]
    inside = "".join(f"{indent}    {line},\n" for line in lines)
    return f"Request(\n{inside}{indent})"


def _literal(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def label(name: str) -> str:
    """A field as the form calls it: `--seq-len` of the command line, without its dashes."""
    return flag_of(name).removeprefix("--").replace("-", " ") if name != "model" else "model"
