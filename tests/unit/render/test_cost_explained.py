"""How a run's cost comes about, figure by figure: what is printed is what was computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftplan import Request, estimate
from peftplan.catalog import prices
from peftplan.render.cost_explained import cost_quantities
from peftplan.render.explain import explain
from peftplan.report import Report
from peftplan.sources import SOURCES


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """A run with every part that a run can have."""
    monkeypatch.setattr(prices, "prices_file", lambda: tmp_path / "prices.csv")
    fields = {"tokens": "20M", "eval_tokens": "1M", "eval_every": 500, "save_every": 500, "spot": True}
    return estimate(Request(model="gpt2", gpu="h100", gpus=2, price=2.0, **fields))


def test_figures_are_those_of_the_answer(report: Report) -> None:
    """Parts sum to the time, the time at its price is the cost, and each is the answer's own."""
    found = {quantity.name: quantity.value for quantity in cost_quantities(report)}
    cost = report.cost
    assert cost is not None
    assert sum(found[name] for name in cost.parts) == pytest.approx(found["time"])
    assert found["cost"] == pytest.approx(found["time"] * 2 * 2.0) == pytest.approx(cost.usd)
    assert (found["steps"], found["energy"]) == (cost.num_steps, cost.energy_kwh)
    assert found["time, low"] <= found["time"] <= found["time, high"]


def test_every_part_says_how_it_comes_about(report: Report) -> None:
    """A meaning or a formula for each, and a source that exists."""
    quantities = list(cost_quantities(report))
    assert {"start", "training", "evaluation", "checkpoints", "interruptions"} <= {one.name for one in quantities}
    assert all(one.meaning or one.formula for one in quantities)
    assert {one.source for one in quantities} - {""} <= set(SOURCES)
    assert {one.source for one in quantities} - {""} <= set(explain(report).sources)


def test_values_are_shown_as_people_read_them(report: Report) -> None:
    """Hours as hours and minutes, dollars with their sign."""
    shown = {quantity.name: quantity.shown() for quantity in cost_quantities(report)}
    assert shown["cost"].startswith("$")
    assert shown["energy"].endswith(" kWh")
    assert shown["steps"] == f"{report.cost.num_steps:,}" if report.cost else ""


def test_without_a_cost_nothing_is_explained() -> None:
    """An answer about memory alone has no figure of money."""
    assert list(cost_quantities(estimate(Request(model="gpt2")))) == []
