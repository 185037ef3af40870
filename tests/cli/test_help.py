"""Help, completion and the way in: they follow from the request's fields and the commands' own files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import peftplan
from peftplan.cli.options import allowed, flag_of
from peftplan.cli.spec import COMMANDS, load_command
from peftplan.request import Request

FOLDER = Path(peftplan.__file__).parent / "cli"
# Files of the folder that are no command.
SERVING = {"ui"}  # runs until it is stopped, and answers nothing by itself
SHARED = {"__init__", "catalogue", "fast", "grid", "options", "output", "progress", "spec", "typed"}


def words_of(text: str) -> str:
    return " ".join(text.split())


def signs_of(text: str) -> str:
    """Text without spaces: help may be broken anywhere."""
    return "".join(text.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command):
    """`peftplan COMMAND --help` says what it does and which forms of output it has."""
    done = run(command, "--help", columns=100)
    assert done.status == 0
    assert COMMANDS[command] in words_of(done.out)
    assert "--json " in done.out or command in SERVING
    assert done.err == ""


def test_every_file_of_the_folder_is_a_command_or_shared():
    """A command exists when it has a file and a line in the table: neither stands alone."""
    files = {path.stem for path in FOLDER.glob("*.py")} - SHARED
    assert files == set(COMMANDS)


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_the_command_alone_lists_the_commands(run, words):
    """Without a command, help is shown and nothing has failed."""
    done = run(*words)
    assert done.status == 0
    assert all(f"  {name} " in done.out for name in COMMANDS)


@pytest.mark.parametrize("name", [name for name in Request.model_fields if name != "model"])
def test_every_field_of_a_request_is_an_option(run, name):
    """Each field has an option of its name, with the field's own words as help."""
    done = run("estimate", "--help", columns=200)
    assert flag_of(name) in done.out
    assert signs_of(Request.model_fields[name].description) in signs_of(done.out)


@pytest.mark.parametrize(("short", "field"), [("-b", "micro_batch"), ("-s", "seq_len"), ("-r", "rank")])
def test_short_forms(run, short, field):
    """The short forms of the interface set their field."""
    done = run("estimate", "gpt2", short, "3", "--json")
    assert done.answer["request"][field] == 3


def test_bounds_in_help_are_those_of_the_field(run):
    """What an option takes is read off its field, not written twice."""
    assert allowed(Request.model_fields["rank"]) == "a whole number from 1 to 1,000,000"
    assert allowed(Request.model_fields["base_dtype"]) == "one of fp32, bf16, fp16"
    assert "from 1 to 1,000,000" in words_of(run("estimate", "--help", columns=200).out)


def test_version(run):
    """`--version` prints the version and nothing else."""
    assert run("--version").out == f"{peftplan.__version__}\n"


def test_module_is_the_command():
    """`python -m peftplan` is the same as the command."""
    done = subprocess.run(
        [sys.executable, "-m", "peftplan", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{peftplan.__version__}\n"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("peftplan est", "estimate"),
        ("peftplan estimate llama-7", "llama-70b"),
        ("peftplan estimate gpt2 --met", "--method"),
        ("peftplan estimate gpt2 --method q", "qlora"),
        ("peftplan estimate gpt2 --gpu a100-8", "a100-80"),
        ("peftplan estimate gpt2 --precision bf16-m", "bf16-master"),
        ("peftplan compare gpt2 --methods full,q", "full,qlora"),
    ],
)
def test_completion_offers(run, monkeypatch, line, offered):
    """The shell is offered commands, models, options and their choices."""
    monkeypatch.setenv("_PEFTPLAN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    done = run()
    assert done.status == 0
    assert offered in done.out.split()


def test_a_completion_script_is_shown(run, monkeypatch):
    """`--show-completion` prints what the shell has to load."""
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = run("--show-completion", "bash")
    assert done.status == 0
    assert "_PEFTPLAN_COMPLETE" in done.out


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in SERVING])
def test_the_json_schema_needs_no_arguments(run, command):
    """`--json-schema` alone prints a schema, whatever else the command asks for."""
    done = run(command, "--json-schema")
    assert done.status == 0
    assert done.answer["type"] == "object"
    assert load_command(command).options
