"""Step time against what others measured: targets, refusals, constants that are up to date, the README's table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from types import ModuleType

import pytest

from peftplan.catalog.step_time_fit import step_time_fit
from peftplan.evidence.scoring import Evidence, score
from peftplan.evidence.tables import read_table
from peftplan.render.time_errors import time_table
from peftplan.scores import TOLERANCES, Score, Validation, grouped, validation

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
START, END = "<!-- time-table -->", "<!-- /time-table -->"
DRIFT = 0.002  # of the root mean square error, as a fraction


def timed(answer: Validation) -> list[Score]:
    return [row for row in answer.rows if row.metric == "tokens_per_s"]


def test_models_left_out_of_the_fit_reach_their_target() -> None:
    """On the A100, each model in turn left out: the mean error is at most 4 %, the worst 15 %."""
    found = step_time_fit().models_left_out["a100-80"]
    assert len(found) >= 7
    assert found["all"]["configurations"] >= 90
    assert found["all"]["mean_abs_error"] <= 0.04
    assert found["all"]["worst_abs_error"] <= 0.15


def test_gpus_left_out_of_the_fit_reach_their_target() -> None:
    """Each card in turn left out: the mean error is at most 15 %, over configurations and over cards."""
    found = step_time_fit().gpus_left_out
    assert found["all"]["mean_abs_error"] <= 0.15
    assert mean(errors["mean_abs_error"] for name, errors in found.items() if name != "all") <= 0.15


@pytest.fixture(scope="module")
def speeds() -> Validation:
    """The table of speeds under the closed form."""
    table = read_table(REPOSITORY / "profiles" / "published" / "throughput.csv")
    return validation(score(Evidence((table,)), ["closed"]))


def test_published_speeds_are_within_tolerance(speeds: Validation) -> None:
    """The rows of throughput.csv that can be compared: median and 90 % of the errors, and their intervals."""
    counted = [row for row in timed(speeds) if row.used]
    assert len(counted) >= 45
    (group,) = grouped(counted, "", lambda row: "all")
    assert group.median_abs_error <= TOLERANCES["tokens_per_s"][0]
    assert group.p90_abs_error <= TOLERANCES["tokens_per_s"][1]
    assert group.interval_coverage is not None
    assert group.interval_coverage >= 0.85


def test_speeds_above_a_cards_peak_are_refused_by_name(speeds: Validation) -> None:
    """One row names an A6000 that would compute above its peak: it is set aside, and says so."""
    (row,) = [row for row in timed(speeds) if "no card computes above its peak" in row.reason]
    assert "A6000" in row.reason
    assert not row.used


def test_the_constants_are_up_to_date(program: Callable[[str], ModuleType], request: pytest.FixtureRequest) -> None:
    """No constant that is fitted does better a twentieth up or down (--regenerate-golden renews them)."""
    fitted = program("fit_step_time")
    if request.config.getoption("--regenerate-golden"):
        fitted.TARGET.write_text(fitted.content(), encoding="utf-8")
        step_time_fit.cache_clear()
    shipped = step_time_fit().constants
    chosen, newest = fitted.points()
    assert step_time_fit().date == newest
    kept = fitted.loss(chosen, shipped) ** 0.5
    for name in fitted.FITTED:
        for factor in (1 / 1.05, 1.05):
            value = min(getattr(shipped, name) * factor, fitted.LIMITS.get(name, 1.0))
            assert fitted.loss(chosen, replace(shipped, **{name: value})) ** 0.5 >= kept - DRIFT, name


def test_no_cards_steps_are_off_to_one_side(program: Callable[[str], ModuleType]) -> None:
    """With the shipped constants every card's median signed error stays within 25 %, the A100's within 2 %."""
    fitted = program("fit_step_time")
    shipped = step_time_fit().constants
    by_card: dict[str, list[float]] = {}
    for point in fitted.points()[0]:
        by_card.setdefault(point.gpu.key, []).append(point.error(shipped))
    middles = {gpu: sorted(errors)[len(errors) // 2] for gpu, errors in by_card.items()}
    assert abs(middles["a100-80"]) <= 0.02
    assert all(abs(middle) <= 0.25 for middle in middles.values()), middles


def test_the_readme_shows_the_errors_of_time(request: pytest.FixtureRequest) -> None:
    """The table between the markers is that of the shipped fit (--regenerate-golden renews it)."""
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(START)
    wanted = f"{head}{START}\n{time_table(step_time_fit())}\n{END}{rest.split(END)[1]}"
    if request.config.getoption("--regenerate-golden"):
        README.write_text(wanted, encoding="utf-8")
    assert README.read_text(encoding="utf-8") == wanted
