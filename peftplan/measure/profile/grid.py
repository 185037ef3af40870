"""A list of runs from a file: YAML or JSON lines, every entry a request's fields and how to measure it.

An entry may also be a case as measuring scripts write it: `model`, `config`, and the fields under `request`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftplan.errors import BadInput, NotFound, shown
from peftplan.measure.profile.edge import FIELDS, OVER, UNDER, at_edge
from peftplan.measure.profile.plan import RANDOM, REAL
from peftplan.measure.profile.session import Wanted
from peftplan.measure.profile.shrink import shrunk
from peftplan.measure.profile.task import MAX_STEPS
from peftplan.request import Request

MAX_FILE_BYTES = 2**23
MAX_RUNS = 10_000
_OWN = ("id", "name", "steps", "warmup", "weights", "edge", "config", "request", "why")
_EDGE = ("vary", "side", "step")
Make = Callable[[Mapping[str, Any], str], Request]


@dataclass(frozen=True, slots=True)
class Entry:
    """One run of a grid as it stands in the file; its request is made when the device is known."""

    wanted: Wanted
    edge: Mapping[str, Any] | None = None

    def tiny(self) -> Wanted:
        """The run made tiny: it has no card, and so no edge."""
        return replace(self.wanted, request=shrunk(self.wanted.request))

    def on(self, gpu: str | None) -> Wanted:
        """The run on a card of the catalogue, which an entry of its own may name instead."""
        request = self.wanted.request
        if request.gpu is None and gpu is not None:
            request = request.model_copy(update={"gpu": gpu})
        if self.edge is not None:
            request = at_edge(request, self.edge["vary"], self.edge["side"], self.edge.get("step", 1))
        return replace(self.wanted, request=request)


def read_grid(path: Path, given: Mapping[str, Any], make: Make) -> list[Entry]:
    """The runs of a file; `given` are fields for every entry that does not state its own."""
    where = shown(str(path))
    value = _parse(_text(path), path.suffix.lower(), where)
    defaults: dict[str, Any] = dict(given)
    if isinstance(value, dict):
        unknown = [name for name in value if name not in ("defaults", "runs")]
        if unknown or not isinstance(value.get("defaults", {}), dict):
            raise BadInput(f"--grid: {where} is no grid; it holds a list of runs, or `defaults` and `runs`")
        defaults |= value.get("defaults", {})
        value = value.get("runs")
    if not isinstance(value, list) or not value:
        raise BadInput(f"--grid: {where} lists no runs")
    if len(value) > MAX_RUNS:
        raise BadInput(f"--grid: {where} lists {len(value)} runs; at most {MAX_RUNS} are taken")
    return [_entry(run, defaults, f"{where}, run {number}: ", make) for number, run in enumerate(value, 1)]


def _text(path: Path) -> str:
    where = shown(str(path))
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BadInput(f"--grid: {where} is larger than {MAX_FILE_BYTES} bytes; it is no grid")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"--grid: {where} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--grid: {where} cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _parse(text: str, suffix: str, where: str) -> Any:
    if suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        return [_json(line, f"{where}, line {number}") for number, line in lines]
    if suffix == ".json":
        return _json(text, where)
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        words = " ".join(str(error).split())[:160]
        raise BadInput(f"--grid: {where} is no YAML ({words})") from None


def _json(text: str, where: str) -> Any:
    def refuse(constant: str) -> float:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise BadInput(f"--grid: {where} is no JSON") from None


def _entry(run: Any, defaults: Mapping[str, Any], where: str, make: Make) -> Entry:
    if not isinstance(run, dict):
        raise BadInput(f"--grid: {where}{shown(run)} is no run; write its fields, such as `model: llama-7b`")
    fields = {**defaults, **run}
    own = {name: fields.pop(name) for name in _OWN if name in fields}
    nested = own.get("request", {})
    if not isinstance(nested, dict):
        raise BadInput(f"--grid: {where}request is {shown(nested)}; it holds a request's fields")
    fields |= nested
    if own.get("config") is not None:
        fields["model"] = own["config"]
    wanted = Wanted(
        request=make(fields, f"--grid: {where}"),
        weights=_one_of(own.get("weights", RANDOM), (RANDOM, REAL), f"{where}weights"),
        num_warmup=_count(own.get("warmup"), f"{where}warmup"),
        num_steps=_count(own.get("steps"), f"{where}steps"),
        name=str(own.get("name", own.get("id", ""))),
    )
    return Entry(wanted, _edge(own["edge"], where) if own.get("edge") is not None else None)


def _edge(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not set(value) <= set(_EDGE):
        raise BadInput(f"--grid: {where}edge is {shown(value)}; it has {', '.join(_EDGE)}")
    _one_of(value.get("vary"), FIELDS, f"{where}edge's vary")
    _one_of(value.get("side"), (UNDER, OVER), f"{where}edge's side")
    _count(value.get("step"), f"{where}edge's step")
    return value


def _one_of(value: Any, choices: tuple[str, ...], where: str) -> str:
    if value not in choices:
        raise BadInput(f"--grid: {where} is {shown(value)}; give one of {', '.join(choices)}")
    return str(value)


def _count(value: Any, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_STEPS:
        raise BadInput(f"--grid: {where} is {shown(value)}; give a whole number from 1 to {MAX_STEPS:,}")
    return value
