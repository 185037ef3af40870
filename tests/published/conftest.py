"""What the tests of published measurements share: all that is shipped, scored once."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftplan.evidence.scoring import Evidence, score
from peftplan.evidence.tables import read_table
from peftplan.scores import Validation, validation

PUBLISHED = Path(__file__).parents[2] / "profiles" / "published"


@pytest.fixture(scope="session")
def published() -> Validation:
    """The published tables under the closed form."""
    tables = tuple(read_table(path) for path in sorted(PUBLISHED.glob("*.csv")))
    return validation(score(Evidence(tables), ["closed"]))
