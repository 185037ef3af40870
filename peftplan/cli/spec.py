"""What describes a command: its arguments and options, from which parsing, help and completion follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

# Commands in the order in which help lists them: file in this folder, and what it does.
COMMANDS = {
    "estimate": "Memory of one run.",
    "compare": "Methods side by side, term by term; or two saved requests.",
    "fit": "What fits a GPU: the largest batch, length, rank or model; what to change where nothing does.",
    "sweep": "A grid of runs, as a table, a file or a chart.",
    "recommend": "Which GPUs to rent, how many and whose: a front of dollars against hours.",
    "merge": "Merging an adapter into its base: memory, disk and time, and what checkpoints take.",
    "serve": "One base and many adapters at inference: memory, storage, speed and cost of a tenant.",
    "trace": "Memory of one run, from the real libraries on fake tensors.",
    "profile": "Real training steps on the local GPU, held against their prediction.",
    "explain": "Every figure with its formula, its numbers put in, and its source.",
    "models": "The models known by name.",
    "gpus": "The GPUs known by name.",
    "prices": "What GPUs rent for; `prices update` adds newer prices.",
    "methods": "The fine-tuning methods.",
    "optimizers": "The optimizers.",
    "validate": "Predictions against recorded runs and published measurements.",
    "calibrate": "A user's own records refine estimates on their machine.",
    "ui": "The what-if explorer, in a browser.",
    "doctor": "What this machine has, and what each command needs.",
}


class Option(NamedTuple):
    """One option. A switch takes no value, and `off` is its opposite; one of `many` may come several times."""

    name: str
    flags: tuple[str, ...]
    help: Callable[[], str]
    switch: bool = False
    off: str = ""
    metavar: str = "TEXT"
    complete: Callable[[], Sequence[str]] | None = None
    many: bool = False


class Argument(NamedTuple):
    """A positional argument; `many` takes one or more."""

    name: str
    help: str
    required: bool = True
    many: bool = False
    complete: Callable[[], Sequence[str]] | None = None


class Command(NamedTuple):
    """One command: `run` gets what was given, by name, and returns the exit status."""

    run: Callable[[dict[str, Any]], int]
    arguments: tuple[Argument, ...]
    options: tuple[Option, ...]
    details: str = ""


def load_command(name: str) -> Command:
    """The command called `name`, from its own file."""
    command = import_module(f"peftplan.cli.{name}").COMMAND
    assert isinstance(command, Command)
    return command


def switch(name: str, text: str) -> Option:
    """An option without a value."""
    return Option(name, ("--" + name.replace("_", "-"),), lambda: text, switch=True)
