"""Predictions against everything that others published: targets, a budget of regressions, the README's table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from peftplan.render.validate import readme_table
from peftplan.scores import TOLERANCES, Score, Validation, grouped

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
START, END = "<!-- published-table -->", "<!-- /published-table -->"
BASELINE = Path(__file__).with_name("baseline.json")
BUDGET = 0.002  # by how much a median may worsen, as a fraction


def counted(answer: Validation, metric: str) -> list[Score]:
    return [row for row in answer.rows if row.used and row.metric == metric and row.outcome == "completed"]


def test_allocated_memory_of_stock_runs_reaches_its_target(published: Validation) -> None:
    """Median absolute error at most 2 %, nine of ten configurations within 6 %, of dozens of configurations."""
    group = grouped(counted(published, "allocated"), "", lambda row: "all")[0]
    assert group.configurations >= 35
    assert group.median_abs_error <= TOLERANCES["allocated"][0]
    assert group.p90_abs_error <= TOLERANCES["allocated"][1]
    assert published.within_tolerance


def test_no_run_that_ran_out_of_memory_is_said_to_fit(published: Validation) -> None:
    """The only acceptable number of false answers is none; some outcomes can be asked."""
    assert published.summary.out_of_memory >= 1
    assert published.summary.false_fits == 0


def test_every_row_appears_once_with_its_figures_or_its_reason(published: Validation) -> None:
    """Nothing is dropped: a row that counts has all figures, any other has none and says why."""
    files: dict[str, list[int]] = {}
    for row in published.rows:
        files.setdefault(row.file, []).append(row.row)
        figures = (row.predicted, row.measured, row.error_frac)
        assert all(figure is not None for figure in figures) if row.used else figures == (None, None, None)
        assert bool(row.reason) is not row.used
    for path in sorted((REPOSITORY / "profiles" / "published").glob("*.csv")):
        rows = path.read_text(encoding="utf-8").count("\n") - 1
        assert files[path.name] == list(range(1, len(files[path.name]) + 1))
        assert len(files[path.name]) <= rows
    assert sum(published.excluded.values()) == published.summary.excluded


def test_intervals_hold_what_they_say(published: Validation) -> None:
    """Of the configurations that they were fitted from, 88 to 98 % lie in their intervals of 90 %."""
    for metric in ("allocated", "reserved"):
        coverage = grouped(counted(published, metric), "", lambda row: "all")[0].interval_coverage
        assert coverage is not None
        assert 0.88 <= coverage <= 0.98, metric


def test_no_median_worsens_beyond_its_budget(published: Validation, request: pytest.FixtureRequest) -> None:
    """A change may worsen a group's median absolute error by 0.2 points at most (--regenerate-golden renews it)."""
    found = {
        f"{metric} {by} {group.name}": round(group.median_abs_error, 5)
        for metric in ("allocated", "reserved", "tokens_per_s")
        for by in ("source", "method")
        for group in grouped(counted(published, metric), by, lambda row, by=by: getattr(row, by).split(" ")[0])  # type: ignore[misc]
    }
    if request.config.getoption("--regenerate-golden"):
        BASELINE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    baseline = json.loads(BASELINE.read_text(encoding="utf-8"))
    assert set(found) == set(baseline)
    worse = {name: (baseline[name], error) for name, error in found.items() if error > baseline[name] + BUDGET}
    assert worse == {}


def test_the_readme_shows_the_errors(published: Validation, request: pytest.FixtureRequest) -> None:
    """The table between the markers is `validate`'s (--regenerate-golden renews it)."""
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(START)
    wanted = f"{head}{START}\n{readme_table(published)}\n{END}{rest.split(END)[1]}"
    if request.config.getoption("--regenerate-golden"):
        README.write_text(wanted, encoding="utf-8")
    assert README.read_text(encoding="utf-8") == wanted


def test_the_numbers_behind_intervals_are_up_to_date(
    program: Callable[[str], ModuleType], request: pytest.FixtureRequest
) -> None:
    """The committed residuals are those that the records give now (--regenerate-golden renews them)."""
    fitted = program("fit_intervals")
    text = fitted.content()
    if request.config.getoption("--regenerate-golden"):
        fitted.TARGET.write_text(text, encoding="utf-8")
    now, kept = json.loads(text), json.loads(fitted.TARGET.read_text(encoding="utf-8"))
    assert {(g["metric"], g["kind"], g["configurations"]) for g in now["groups"]} == {
        (g["metric"], g["kind"], g["configurations"]) for g in kept["groups"]
    }
    for one, other in zip(now["groups"], kept["groups"]):
        assert one["half_frac"] == pytest.approx(other["half_frac"], abs=BUDGET)


def test_held_out_configurations_lie_in_intervals_fitted_without_them(program: Callable[[str], ModuleType]) -> None:
    """Leaving out one configuration after the other, 88 to 97 % of those left out lie within the others' reach."""
    fitted = program("fit_intervals")
    cases = [case for _, case in fitted.shipped_evidence().cases()]
    by_configuration: dict[tuple[str, str], list[float]] = {}
    for case in cases:
        value = fitted.residual(case)
        if value is not None:
            by_configuration.setdefault((value[0], value[2]), []).append(value[3])
    for metric in ("allocated", "reserved"):
        values = [sorted(v)[len(v) // 2] for (m, _), v in by_configuration.items() if m == metric]
        inside = [
            abs(value) <= fitted.half_width(values[:place] + values[place + 1 :])
            for place, value in enumerate(values)
        ]
        assert 0.88 <= sum(inside) / len(inside) <= 0.97, metric
