"""What all tests share: one flag, and a way to run a command line inside this process."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest


class Done(NamedTuple):
    """What a command line left: its exit status and both streams."""

    status: int
    out: str
    err: str

    @property
    def answer(self) -> Any:
        """What was printed as JSON."""
        return json.loads(self.out)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--regenerate-golden` writes the golden screens anew instead of comparing them."""
    parser.addoption("--regenerate-golden", action="store_true", help="write tests/golden/*.txt anew")


def pytest_configure() -> None:
    """Interrupts reach what the tests start, also where a shell began them in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Runs `peftplan` with the given words, 80 columns wide and without colour unless told otherwise."""
    from peftplan.cli import main

    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "PEFTPLAN_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")

    def run_words(*words: str, columns: int = 80) -> Done:
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        status = main(words)
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return run_words
