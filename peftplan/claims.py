"""Claims that circulate, checked: every figure as told, as peftplan answers, and what lies between."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from peftplan.catalog.claims import Claim, ClaimedFigure, all_claims, claims_source
from peftplan.planner import estimate
from peftplan.report import SCHEMA_VERSION, Report
from peftplan.request import Request
from peftplan.specs.formats import QuantFormat
from peftplan.units import GB

# What a figure is divided by, from how its name ends, and what stands behind it.
UNITS: dict[str, tuple[float, str]] = {
    "_tb": (1000 * GB, "TB"),
    "_gb": (GB, "GB"),
    "_mb": (GB / 1000, "MB"),
    "_b": (GB, "B"),
    "_bits": (1, "bits"),
    "_params": (1, "parameters"),
}
Values = Mapping[str, Mapping[str, float]]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CheckedFigure(_Frozen):
    """One figure: `claimed_low` and `claimed_high` are None where nothing is claimed, `difference_frac` too.

    The difference is to the nearer end of what is claimed, 0 inside it. `numbers` is the formula with the numbers
    put in, in bytes and parameters.
    """

    name: str
    unit: str
    claimed_low: float | None
    claimed_high: float | None
    predicted: float
    difference_frac: float | None
    formula: str
    numbers: str


class CheckedClaim(_Frozen):
    """A claim and what peftplan says of it."""

    id: str
    source: str
    run: str
    finding: str
    reason: str
    verdict: str
    figures: tuple[CheckedFigure, ...]
    also: tuple[CheckedFigure, ...]
    runs: dict[str, dict[str, Any]]


class CheckedClaims(_Frozen):
    """The answer of `explain --claims`, and of `--claim` with one."""

    schema_version: int
    source: str
    claims: tuple[CheckedClaim, ...]


def check_claims(
    claims: tuple[Claim, ...] | None = None, progress: Callable[[float, str], None] | None = None
) -> CheckedClaims:
    """Every claim of the catalogue, or these."""
    asked = all_claims() if claims is None else claims
    found = []
    for number, claim in enumerate(asked):
        if progress is not None:
            progress(number / len(asked), claim.id)
        found.append(check_claim(claim))
    return CheckedClaims(schema_version=SCHEMA_VERSION, source=claims_source(), claims=tuple(found))


def check_claim(claim: Claim) -> CheckedClaim:
    """One claim: its runs are estimated, and its formulas worked out."""
    values = {name: _asked(fields) for name, fields in claim.runs.items()}
    values |= {name: _matrix(*shape) for name, shape in claim.matrices.items()}
    values |= {name: _stored(*kind) for name, kind in claim.storages.items()}
    return CheckedClaim(
        id=claim.id,
        source=f"text {claim.text}",
        run=claim.run,
        finding=claim.finding,
        reason=claim.reason,
        verdict=claim.verdict,
        figures=tuple(_checked(figure, values) for figure in claim.figures),
        also=tuple(_checked(figure, values) for figure in claim.also),
        runs=dict(claim.runs),
    )


def _asked(fields: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a run; of several models, the parameters of the largest that fits."""
    if isinstance(fields["model"], list):
        reports = [estimate(Request(**{**fields, "model": model}), recipes=False) for model in fields["model"]]
        fitting = [report.model.num_params for report in reports if report.gpu is not None and report.gpu.fits]
        return {"largest": float(max(fitting, default=0))}
    return _figures(estimate(Request(**fields), recipes=False))


def _figures(report: Report) -> dict[str, float]:
    """Figures of an answer by the names that formulas have for them [bytes, parameters]."""
    memory, method = report.memory, report.method
    found = {
        **memory.resident.model_dump(),
        "activations": memory.activations_bytes,
        "peak": memory.peak_allocated_bytes,
        "reserved": memory.peak_reserved_bytes,
        "device": memory.device_bytes,
        "params": report.model.num_params,
        "trainable": method.num_trainable_params,
        "checkpoint": method.adapter_checkpoint_bytes,
    }
    return {name: float(value) for name, value in found.items()}


def _matrix(inputs: int, outputs: int, rank: int) -> dict[str, float]:
    """One matrix with a LoRA of this rank [parameters]. Source: lora."""
    return {"params": float(inputs * outputs), "trainable": float(rank * (inputs + outputs))}


def _stored(kind: str, block_size: int, double_quant: bool) -> dict[str, float]:
    """Bits that a weight takes in a large matrix, scales included. Source: qlora."""
    rows = columns = 2**14
    size = QuantFormat(kind, block_size, double_quant).num_bytes(rows, columns)
    return {"bits": 8 * size / (rows * columns)}


# ---- formulas

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def value_of(formula: str, values: Values) -> float:
    """What a formula comes to; it knows numbers, the four operations, and figures such as `run.weights`."""
    return _value(ast.parse(formula, mode="eval").body, values)


def _value(node: ast.expr, values: Values) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return float(node.value)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return values[node.value.id][node.attr]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, values), _value(node.right, values))
    raise ValueError(f"no formula of a claim: {ast.unparse(node)}")


def _with_numbers(formula: str, values: Values) -> str:
    """The formula with every figure in its place."""
    text = formula
    for name, figures in values.items():
        for figure in sorted(figures, key=len, reverse=True):
            value = figures[figure]
            text = text.replace(f"{name}.{figure}", f"{value:,.0f}" if value == int(value) else f"{value:.4g}")
    return text


def _checked(figure: ClaimedFigure, values: Values) -> CheckedFigure:
    scale, unit = next(((s, u) for ending, (s, u) in UNITS.items() if figure.name.endswith(ending)), (1.0, ""))
    predicted = value_of(figure.formula, values) / scale
    claimed = figure.claimed
    low, high = claimed if isinstance(claimed, tuple) else (claimed, claimed)
    return CheckedFigure(
        name=next((figure.name.removesuffix(end) for end in UNITS if figure.name.endswith(end)), figure.name),
        unit=unit,
        claimed_low=low,
        claimed_high=high,
        predicted=predicted,
        difference_frac=None if low is None or high is None else _difference(predicted, low, high),
        formula=figure.formula,
        numbers=_with_numbers(figure.formula, values),
    )


def _difference(predicted: float, low: float, high: float) -> float:
    """predicted / claimed - 1, to the nearer end of a range; 0 inside it."""
    if low <= predicted <= high:
        return 0.0
    return predicted / (low if predicted < low else high) - 1
