"""Claims beside peftplan's figures: one of them formula by formula, or all in a table, as the page has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from peftplan.claims import CheckedClaim, CheckedClaims, CheckedFigure
from peftplan.render.blocks import Block, Column, Notes, Table, Text
from peftplan.render.words import percent

_FINDINGS = {"holds": "holds", "roughly": "holds in part", "wrong": "does not hold"}
_SHARES = ("frac",)  # figures that are shares of a whole
CSV_HEADER = (
    *("claim", "finding", "figure", "unit", "claimed_low", "claimed_high", "predicted", "difference_frac"),
    "formula",
)


def claims_blocks(answer: CheckedClaims) -> Iterator[Block]:
    """One claim in full; of several a row each."""
    if len(answer.claims) == 1:
        yield from _one(answer.claims[0])
        return
    yield Text("Numbers that circulate, checked", "title")
    yield Text(f"{answer.source}. GB is 10^9 bytes here, as the texts have it.")
    yield Table(
        "",
        tuple(Column(name) for name in ("claim", "told", "peftplan", "difference", "it", "because")),
        tuple(
            (
                f"{claim.id}: {claim.run}",
                "; ".join(f"{_name(figure)} {_told(figure)}" for figure in claim.figures),
                "; ".join(_shown(figure, figure.predicted) for figure in claim.figures),
                "; ".join(_difference(figure) for figure in claim.figures),
                _FINDINGS[claim.finding],
                _reason(claim),
            )
            for claim in answer.claims
        ),
        below="peftplan explain --claim NAME shows a claim's formulas with their numbers, and its runs.",
    )


def _one(claim: CheckedClaim) -> Iterator[Block]:
    yield Text(f"{claim.id}: {claim.run} ({claim.source})", "title")
    yield Text(f"The claim {_FINDINGS[claim.finding]}. {_reason(claim)}", _tone(claim))
    yield Table(
        "Told and worked out",
        (
            Column("figure"),
            Column("told", right=True),
            Column("peftplan", right=True),
            Column("difference", right=True),
        ),
        tuple(
            (_name(figure), _told(figure), _shown(figure, figure.predicted), _difference(figure))
            for figure in (*claim.figures, *claim.also)
        ),
    )
    yield Notes(
        "Formulas, and their numbers put in",
        tuple(f"{_name(f)} = {f.formula} = {f.numbers}" for f in (*claim.figures, *claim.also)),
    )
    if claim.runs:
        yield Notes("Runs", tuple(f"{name}: {command(fields)}" for name, fields in claim.runs.items()))


def _tone(claim: CheckedClaim) -> str:
    return {"holds": "good", "roughly": "warn", "wrong": "bad"}[claim.finding]


def _reason(claim: CheckedClaim) -> str:
    return f"{claim.reason} ({claim.verdict}.)" if claim.verdict else claim.reason


def command(fields: Mapping[str, Any]) -> str:
    """A run as it is typed; a model given as a config is named by what it says of itself."""
    model = fields["model"]
    if isinstance(model, list):
        words = ["peftplan estimate", " | ".join(model)]
    else:
        words = ["peftplan explain", model if isinstance(model, str) else f"<config: {model['_name_or_path']}>"]
    for name, value in fields.items():
        if name == "model":
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words.append(f"--{flag} {value}")
    return " ".join(words)


def _name(figure: CheckedFigure) -> str:
    return figure.name.replace("_", " ")


def _told(figure: CheckedFigure) -> str:
    low, high = figure.claimed_low, figure.claimed_high
    if low is None or high is None:
        return "-"
    if low == high:
        return _shown(figure, low)
    return f"{low:g} to {_shown(figure, high)}"


def _shown(figure: CheckedFigure, value: float) -> str:
    """A figure with its unit: counts whole, shares as a percentage."""
    if figure.name.endswith(_SHARES):
        return percent(value)
    if figure.unit == "parameters":
        return f"{value:,.0f}"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {figure.unit}".strip()


def _difference(figure: CheckedFigure) -> str:
    if figure.difference_frac is None:
        return "-"
    if abs(figure.difference_frac) >= 1:
        return f"{figure.difference_frac + 1:.1f} times"
    return f"{100 * figure.difference_frac:+.0f} %" if round(100 * figure.difference_frac) else "none"


def claims_csv(answer: CheckedClaims) -> Iterable[tuple[object, ...]]:
    """One row for each figure."""
    for claim in answer.claims:
        for figure in (*claim.figures, *claim.also):
            yield (
                claim.id,
                claim.finding,
                figure.name,
                figure.unit,
                figure.claimed_low,
                figure.claimed_high,
                figure.predicted,
                figure.difference_frac,
                figure.formula,
            )
