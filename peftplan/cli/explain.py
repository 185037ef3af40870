"""`peftplan explain MODEL`: every figure with its formula, the numbers put in, and its source; claims, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftplan.cli.options import model_argument, request_from, request_options
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.progress import progress_bar
from peftplan.cli.spec import Command, Option, switch
from peftplan.errors import BadInput


def run(given: dict[str, Any]) -> int:
    """Explain one answer, or check claims."""
    if given.get("claim") or given.get("claims"):
        return _claims(given)
    from peftplan.render.explain import Explanation, Figure, explain, explain_blocks

    if given.get("json_schema"):
        return write_schema(Explanation.model_json_schema(mode="serialization"))
    if not given.get("model"):
        raise BadInput("MODEL is missing; give a model, or --claim NAME for a figure that circulates")
    form = chosen_form(given)
    request = request_from(given)
    from peftplan.engines import estimate
    from peftplan.render.table_csv import rows_csv

    with progress_bar("tracing", request.engine == "trace") as progress:
        report = estimate(request, progress)
    header = list(Figure.model_fields)
    emit(
        form,
        lambda: explain(report).model_dump_json(),
        lambda: explain_blocks(report),
        lambda: rows_csv(header, ([getattr(f, name) for name in header] for f in explain(report).figures)),
    )
    return 0


def _claims(given: dict[str, Any]) -> int:
    """One claim with its formulas, or all of them."""
    from peftplan.catalog.claims import find_claim
    from peftplan.claims import CheckedClaims, check_claims

    if given.get("json_schema"):
        return write_schema(CheckedClaims.model_json_schema(mode="serialization"))
    beside = sorted(set(given) - {"claim", "claims", "json", "markdown", "csv", "plain"})
    if beside:
        name = "MODEL" if beside[0] == "model" else "--" + beside[0].replace("_", "-")
        raise BadInput(f"{name} and --claim exclude each other: a claim brings its own runs; leave one of them out")
    form = chosen_form(given)
    asked = None if given.get("claims") else (find_claim(given["claim"]),)
    from peftplan.render.claims import CSV_HEADER, claims_blocks, claims_csv
    from peftplan.render.table_csv import rows_csv

    with progress_bar("checking", asked is None) as progress:
        answer = check_claims(asked, progress)
    emit(
        form,
        answer.model_dump_json,
        lambda: claims_blocks(answer),
        lambda: rows_csv(list(CSV_HEADER), claims_csv(answer)),
    )
    return 0


def _names() -> Sequence[str]:
    from peftplan.catalog.claims import all_claims

    return [claim.id for claim in all_claims()]


COMMAND = Command(
    run,
    (model_argument()._replace(required=False),),
    (
        Option(
            "claim",
            ("--claim",),
            lambda: "in place of a model: a figure that circulates, told and worked out",
            metavar="NAME",
            complete=_names,
        ),
        switch("claims", "all of these figures, in a table"),
        *request_options(),
        *output_options(),
    ),
    "The JSON holds figures (group, name, bytes, meaning, formula, source), conventions and sources; "
    "with --claim it holds claims (figures told and predicted, with formulas, and the runs behind them).",
)
