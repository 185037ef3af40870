"""What the tests of published measurements share: all that is shipped, scored once."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from peftplan.evidence.scoring import Evidence, score
from peftplan.evidence.tables import read_table
from peftplan.scores import Validation, validation

PUBLISHED = Path(__file__).parents[2] / "profiles" / "published"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These tests go to one worker where several run, so that all is scored once indeed."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.xdist_group("published"))


@pytest.fixture(scope="session")
def published() -> Validation:
    """The published tables under the closed form."""
    tables = tuple(read_table(path) for path in sorted(PUBLISHED.glob("*.csv")))
    return validation(score(Evidence(tables), ["closed"]))


@pytest.fixture
def program() -> Callable[[str], ModuleType]:
    """Loads a program of `profiles/`, which is no package, by its name."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, PUBLISHED.parent / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load
