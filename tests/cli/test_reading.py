"""Two readers, one description: what the fast reader accepts, typer reads alike."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from peftplan.cli import fast, typed
from peftplan.cli.spec import Command, load_command

ESTIMATE = load_command("estimate")
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


def options() -> st.SearchStrategy[list[str]]:
    """One option of `estimate` as it may be written."""

    def written(option: Any) -> st.SearchStrategy[list[str]]:
        if option.switch:
            return st.sampled_from([flag for flag in (*option.flags, option.off) if flag]).map(lambda f: [f])
        spaced = st.tuples(st.sampled_from(option.flags), VALUES).map(list)
        return spaced | VALUES.map(lambda value: [f"{option.flags[0]}={value}"])

    known = [option for option in ESTIMATE.options if option.name != "json_schema"]
    return st.sampled_from(known).flatmap(written)


LINES = st.lists(options() | st.sampled_from([["gpt2"], ["--bogus"], ["-b3"], ["--"], ["-"]]), max_size=5)


def read_by_typer(words: list[str]) -> dict[str, Any] | None:
    """What typer would hand to `estimate`."""
    seen: list[dict[str, Any]] = []

    def keep(given: dict[str, Any]) -> int:
        seen.append(given)
        return 0

    command = Command(keep, ESTIMATE.arguments, ESTIMATE.options)
    original = typed.load_command
    typed.load_command = lambda name: command  # type: ignore[assignment]
    try:
        typed.run_with_typer(["estimate", *words])
    finally:
        typed.load_command = original
    return seen[0] if seen else None


@given(LINES)
@settings(max_examples=100, deadline=None)
def test_typer_reads_what_the_fast_reader_reads(parts: list[list[str]]) -> None:
    """Where the fast reader accepts a line, typer gives the command the same words."""
    words = [word for part in parts for word in part]
    read = fast.read(ESTIMATE, words)
    if read is not None:
        assert read_by_typer(words) == read


def test_the_fast_reader_takes_the_usual_lines() -> None:
    """Ordinary lines need no typer."""
    line = "llama-70b --method qlora -b 4 --seq-len=4096 --no-checkpointing --json"
    assert fast.read(ESTIMATE, line.split()) == {
        "model": "llama-70b",
        "method": "qlora",
        "micro_batch": "4",
        "seq_len": "4096",
        "checkpointing": False,
        "json": True,
    }


def test_joined_short_options_are_read_by_typer() -> None:
    """`-b4` is left to typer, which knows it."""
    assert fast.read(ESTIMATE, ["gpt2", "-b4"]) is None
    assert read_by_typer(["gpt2", "-b4"]) == {"model": "gpt2", "micro_batch": "4"}


def test_an_estimate_loads_neither_typer_nor_rich() -> None:
    """Startup is a feature: JSON comes without typer and rich, a screen without typer."""
    code = (
        "import sys; from peftplan.cli import main; main(['estimate', 'gpt2', '--json']); "
        "print(*(m for m in ('typer', 'rich', 'click') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == ""
