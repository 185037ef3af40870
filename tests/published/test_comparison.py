"""peft's method comparison: about fifty methods on one model, whose batches vary in length."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import pytest

from peftplan.catalog.profiles import published_tables
from peftplan.evidence import comparison
from peftplan.evidence.scoring import Evidence, score
from peftplan.evidence.tables import Table, read_table
from peftplan.scores import Score

DAY = "2026-07-20"  # the session in which every method was measured with the same releases


@pytest.fixture(scope="module")
def scores() -> dict[str, Score]:
    """Each experiment of the session with its prediction."""
    table = read_table(next(path for path in published_tables() if path.name == "memory.csv"))
    rows = tuple(row for row in table.rows if comparison.is_of_comparison(row) and row["commit_date"] == DAY)
    found = score(Evidence((Table(table.name, table.kind, rows),)), ["closed"])
    return {comparison.experiment(row): one for row, one in zip(rows, found)}


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
