"""A child process that stands for a measured run: no torch, no GPU, answers from a script."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in import A100, ANSWER, SCRIPT

from peftplan.measure.profile.process import Child

Start = Callable[[str], Child]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """One line for each task that a child was given."""
    return tmp_path / "tasks.log"


@pytest.fixture
def start(log: Path) -> Callable[..., Start]:
    """Makes what starts a child that says the given answer."""
    import json

    def make(answer: dict | None = None, deed: str = "answer", hardware: dict = A100) -> Start:
        told = {**(answer or ANSWER), "hardware": hardware}
        command = [sys.executable, "-c", SCRIPT, json.dumps(hardware), json.dumps(told), str(log), deed]
        return lambda device: Child(device, command)

    return make
