"""The closed form against recorded answers of the trace: needs neither torch nor the libraries."""

from __future__ import annotations

from statistics import median

import pytest
from cases import Case, by_method, errors, recorded
from error_table import README, table, with_table, within

CASES = recorded()
RESERVED_MEDIAN_WITHIN = 0.04


@pytest.mark.parametrize("case", CASES, ids=Case.label)
def test_closed_form_agrees_with_the_trace(case: Case) -> None:
    """Resident bytes are exact; what forward leaves alive and the allocated peak agree within 1 %."""
    found = errors(case)
    assert within(found), found


def test_reserved_is_within_four_percent_in_the_median() -> None:
    """The modelled reserved peak agrees within 4 % in the median of every method."""
    groups = by_method((case, errors(case)) for case in CASES)
    for method, found in groups.items():
        assert median(abs(row["reserved"]) for row in found) <= RESERVED_MEDIAN_WITHIN, method


def test_the_readme_shows_these_errors() -> None:
    """The error table of the README is the one these cases give (error_table.py --write renews it)."""
    text = README.read_text(encoding="utf-8")
    assert with_table(text, table(CASES)) == text
