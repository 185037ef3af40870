"""peft's method comparison: about fifty methods on one model, whose batches vary in length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pytest

from peftplan.catalog.profiles import published_tables
from peftplan.evidence import comparison
from peftplan.evidence.tables import read_table
from peftplan.scores import Score, Validation
from peftplan.units import GIB

PAGE = Path(__file__).parents[2] / "profiles" / "METHODS.md"
DAY = "2026-07-20"  # the session in which every method was measured with the same releases


@pytest.fixture(scope="module")
def scores(published: Validation) -> dict[str, Score]:
    """Each experiment of the session with its prediction."""
    table = read_table(next(path for path in published_tables() if path.name == "memory.csv"))
    found = {one.row: one for one in published.rows if one.file == "memory.csv"}
    return {
        comparison.experiment(row): found[number]
        for number, row in enumerate(table.rows, start=1)
        if comparison.is_of_comparison(row) and row["commit_date"] == DAY
    }


def ranks(values: Sequence[float]) -> list[float]:
    """The place of each value in their order; those that are equal share the mean of theirs."""
    order = sorted(values)
    return [order.index(value) + (order.count(value) - 1) / 2 for value in values]


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: that of the ranks."""
    a, b = ranks(first), ranks(second)
    mean = (len(a) - 1) / 2
    above = sum((x - mean) * (y - mean) for x, y in zip(a, b))
    return above / (sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)) ** 0.5


def page(scores: dict[str, Score]) -> str:
    """The session as a page: every experiment, what was predicted and measured, the error; why some have none."""
    used = {name: one for name, one in scores.items() if one.used}
    order = correlation([one.predicted for one in used.values()], [one.measured for one in used.values()])
    errors = sorted(abs(one.error_frac) for one in used.values())
    lines = [
        "# Methods against their published measurements",
        "",
        f"peft's own comparison of methods on Llama-3.2-3B, L40S, batches of four examples, session of {DAY}:",
        "the 99th percentile of what is reserved after a step. The lengths of examples were fitted on one method,",
        "LoRA of rank 32; nothing else was (see `torch_reserved_p99` in README.md).",
        "",
        f"{len(used)} experiments: rank correlation {order:.3f}, median absolute error",
        f"{100 * median(errors):.1f} %, largest {100 * errors[-1]:.1f} %.",
        "",
        "| experiment | predicted GiB | measured GiB | error |",
        "|---|---:|---:|---:|",
    ]
    for name, one in sorted(used.items(), key=lambda pair: pair[1].measured):
        figures = f"{one.predicted / GIB:.2f} | {one.measured / GIB:.2f} | {100 * one.error_frac:+.1f} %"
        lines.append(f"| {name} | {figures} |")
    lines += [f"| {name} | - | - | {one.reason} |" for name, one in sorted(scores.items()) if not one.used]
    return "\n".join(lines) + "\n"


def test_the_page_is_what_the_scores_say(request: pytest.FixtureRequest, scores: dict[str, Score]) -> None:
    """The page on file has every experiment of the session (--regenerate-golden renews it)."""
    if request.config.getoption("--regenerate-golden"):
        PAGE.write_text(page(scores), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(scores)


def test_nearly_every_method_is_predicted(scores: dict[str, Score]) -> None:
    """What is set aside says why; at least forty of the session's methods are not."""
    assert sum(one.used for one in scores.values()) >= 40
    assert all(one.reason for one in scores.values() if not one.used)


def test_methods_keep_their_order_by_memory(scores: dict[str, Score]) -> None:
    """The rank correlation of predicted and measured memory is at least 0.95."""
    used = [one for one in scores.values() if one.used]
    assert correlation([one.predicted for one in used], [one.measured for one in used]) >= 0.95


def test_half_of_the_errors_are_small(scores: dict[str, Score]) -> None:
    """Half of the methods are met to 2 %, all but one method - whose lengths were fitted - without a fit."""
    errors = [abs(one.error_frac) for name, one in scores.items() if one.used and "lora-" not in name]
    assert median(errors) <= 0.02
    assert max(errors) <= 0.12


def test_experiments_are_named_as_the_table_names_them(scores: dict[str, Score]) -> None:
    """Every experiment of the session has its settings on file."""
    known = comparison.known_experiments()
    assert [name for name in scores if name not in known] == []
