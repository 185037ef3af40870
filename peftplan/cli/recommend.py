"""`peftplan recommend MODEL`: which cards to rent, as a front of dollars against hours."""

from __future__ import annotations

from typing import Any

from peftplan.cli.options import counted, model_argument, request_from, request_options
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.spec import Command, Option, switch
from peftplan.errors import BadInput, shown
from peftplan.request import MAX_GPUS
from peftplan.units import parse_duration_s

MAX_USD = 10**9


def run(given: dict[str, Any]) -> int:
    """Answer which cards carry the request out."""
    if given.get("json_schema"):
        from peftplan.answers import RecommendReport

        return write_schema(RecommendReport.model_json_schema(mode="serialization"))
    form = chosen_form(given)
    # one GPU-hour's provider is a field of a request; here several may be named
    providers = [name.strip() for name in given.get("provider", "").split(",") if name.strip()]
    request = request_from({name: value for name, value in given.items() if name != "provider"})
    from peftplan.advice.recommend import MAX_GPUS as DEFAULT_GPUS
    from peftplan.advice.recommend import recommend
    from peftplan.render.recommend import recommend_blocks, recommend_csv

    report = recommend(
        request,
        budget_usd=dollars_of(given.get("budget")),
        deadline_s=seconds_of(given.get("deadline")),
        providers=providers,
        tune_batch=bool(given.get("tune_batch")),
        max_gpus=counted("--max-gpus", given.get("max_gpus"), MAX_GPUS) or DEFAULT_GPUS,
    )
    emit(form, report.model_dump_json, lambda: recommend_blocks(report), lambda: recommend_csv(report))
    return 0


def dollars_of(text: str | None) -> float | None:
    """US dollars: `40`, `$40`, `1,200.50`."""
    if text is None:
        return None
    word = text.strip().removeprefix("$").replace(",", "")
    whole, _, cents = word.partition(".")
    amount = float(word) if (whole + cents).isdecimal() and word.isascii() else 0.0
    if not 0 < amount <= MAX_USD:
        raise BadInput(f"--budget {shown(text)} is not allowed; give US dollars above 0, such as 40 or 12.50")
    return amount


def seconds_of(text: str | None) -> float | None:
    """A duration with its unit."""
    if text is None:
        return None
    try:
        seconds = parse_duration_s(text)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise BadInput(f"--deadline {shown(text)} is not allowed; give a duration such as 12h, 90m or 2d")
    return seconds


def provider_names() -> list[str]:
    """Providers of the catalogue."""
    from peftplan.catalog.prices import all_offers

    return sorted({offer.provider for offer in all_offers()})


COMMAND = Command(
    run,
    (model_argument(),),
    (
        Option("budget", ("--budget",), lambda: "the most that the run may cost, in US dollars", metavar="USD"),
        Option(
            "deadline", ("--deadline",), lambda: "the longest that it may take, such as 12h", metavar="DURATION"
        ),
        Option(
            "provider",
            ("--provider",),
            lambda: "only these providers, with commas: see `peftplan prices`",
            metavar="NAMES",
            complete=provider_names,
        ),
        Option(
            "max_gpus",
            ("--max-gpus",),
            lambda: "the most GPUs of one machine; default 8",
            metavar="INTEGER",
        ),
        switch("tune_batch", "give every card the largest micro-batch that is sure to fit"),
        *request_options(without=("provider",)),
        *output_options(),
    ),
    "Every GPU of the catalogue in every number in which it is rented out; --gpu and --gpus leave only theirs. "
    "The JSON holds rows (gpu, num_gpus, provider, request, memory, fit, time, cost, rented, on_front, within, "
    "reason), recommended (the place of the advised row, or null), unfit, unpriced and notes.",
)
