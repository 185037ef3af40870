"""`peftplan compare`: methods side by side, or saved requests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

from peftplan.cli.options import (
    given_fields,
    method_names,
    model_names,
    request_from,
    request_options,
    validated,
)
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.progress import progress_bar
from peftplan.cli.spec import Argument, Command, Option
from peftplan.errors import BadInput, NotFound
from peftplan.request import EngineName, Request

DEFAULT_METHODS = "full,lora,qlora"
ALL = "all"


def run(given: dict[str, Any]) -> int:
    """Answer every request and put them side by side."""
    if given.get("json_schema"):
        from peftplan.report import Comparison

        return write_schema(Comparison.model_json_schema(mode="serialization"))
    form = chosen_form(given)
    requests = _requests(given)
    from peftplan.engines import compare
    from peftplan.render.compare import column_names, compare_blocks
    from peftplan.render.table_csv import comparison_csv

    with progress_bar("tracing", any(request.engine == "trace" for request in requests)) as progress:
        comparison = compare(requests, progress)
    emit(
        form,
        comparison.model_dump_json,
        lambda: compare_blocks(comparison),
        lambda: comparison_csv(comparison, column_names(comparison.columns)),
    )
    return 0


def _requests(given: dict[str, Any]) -> list[Request]:
    names = given["model"]
    if len(names) > 1:
        if "engines" in given:
            raise BadInput("--engines sets the columns of one MODEL; --engine answers saved requests by one engine")
        if "methods" in given:
            raise BadInput("--methods sets the columns of one MODEL; a saved request has its own method")
        return [_saved(name, given_fields({**given, "model": None})) for name in names]
    request = request_from({**given, "model": names[0]})
    if given.get("methods", "").strip().lower() == ALL:
        return _ranked(request)
    methods = _listed(given.get("methods", DEFAULT_METHODS if "engines" not in given else request.method))
    if not methods:
        raise BadInput(f"--methods names none; give some of {', '.join(method_names())}")
    return [
        request.model_copy(update={"method": method, "engine": engine})
        for method in methods
        for engine in _engines(given, request)
    ]


def _ranked(request: Request) -> list[Request]:
    """Every method that runs on the model, the one with the lowest peak first."""
    from peftplan.memory.repeated import Plays
    from peftplan.methods import METHODS
    from peftplan.planner import estimate

    found, plays = [], Plays()
    for name, method in METHODS.items():
        own = {key: value for key, value in request.method_options.items() if key in method.options.model_fields}
        asked = request.model_copy(update={"method": name, "method_options": own})
        try:
            answer = estimate(asked, recipes=False, breakdown=False, plays=plays)
        except BadInput as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
            continue
        found.append((answer.memory.peak_allocated_bytes, asked))
    if not found:
        raise BadInput("no method runs on this model as asked; see the lines above")
    return [asked for _, asked in sorted(found, key=lambda one: one[0])]


def _listed(text: str) -> list[str]:
    """Words between commas, each once."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _engines(given: dict[str, Any], request: Request) -> list[str]:
    if "engines" not in given:
        return [request.engine]
    if "engine" in given:
        raise BadInput("--engine and --engines exclude each other; leave one out")
    engines = [word.lower() for word in _listed(given["engines"])]
    known = get_args(EngineName)
    unknown = [word for word in engines if word not in known]
    if unknown or not engines:
        raise BadInput(
            f"--engines {given['engines']!r} is not allowed; give some of {', '.join(known)}, with commas"
        )
    return engines


def _saved(name: str, changed: dict[str, Any]) -> Request:
    """A request from a file: the request itself, or an answer that holds one; options override its fields."""
    import json

    def refuse(constant: str) -> float:
        raise ValueError(constant)

    path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        saved = json.loads(text, parse_constant=refuse)
    except FileNotFoundError:
        raise NotFound(
            f"{name} is no file; several arguments are files of saved requests, "
            "such as `peftplan estimate MODEL --json` writes"
        ) from None
    except (ValueError, RecursionError):
        raise BadInput(f"{name} is no JSON; give what `peftplan estimate MODEL --json` writes") from None
    fields = saved.get("request", saved) if isinstance(saved, dict) else None
    if not isinstance(fields, dict):
        raise BadInput(f"{name} holds no request; give what `peftplan estimate MODEL --json` writes")
    del changed["model"]
    return validated({**fields, **changed}, f"{name}: ")


COMMAND = Command(
    run,
    (
        Argument(
            "model",
            "a model as for `estimate`; or two and more files of saved requests (or of answers)",
            many=True,
            complete=model_names,
        ),
    ),
    (
        Option(
            "methods",
            ("--methods",),
            lambda: f"columns, with commas, or {ALL}, by their peaks; default {DEFAULT_METHODS}",
            metavar="NAMES",
            complete=method_names,
        ),
        Option(
            "engines",
            ("--engines",),
            lambda: "the same run by several engines, with commas: closed,trace",
            metavar="NAMES",
            complete=lambda: get_args(EngineName),
        ),
        *request_options(without=("method",)),
        *output_options(),
    ),
    "The JSON holds columns (one report each), terms (name, and bytes by column: they sum to each peak) and, of "
    "one run by two engines, differences (tensors that only one of them has).",
)
