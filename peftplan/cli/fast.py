"""Reads well-formed command lines in a few microseconds; whatever else comes is left to typer."""

from __future__ import annotations

import os
from typing import Any

from peftplan.cli.spec import COMMANDS, Argument, Command, load_command

COMPLETION_VARIABLE = "_PEFTPLAN_COMPLETE"


def run_well_formed(words: list[str]) -> int | None:
    """The exit status, or None where typer has to read the line: help, completion, or a mistake."""
    if not words or words[0] not in COMMANDS or COMPLETION_VARIABLE in os.environ:
        return None
    command = load_command(words[0])
    given = read(command, words[1:])
    return None if given is None else command.run(given)


def read(command: Command, words: list[str]) -> dict[str, Any] | None:
    """What is given, by name; None if the line is not well-formed."""
    by_flag = {flag: option for option in command.options for flag in (*option.flags, option.off) if flag}
    given: dict[str, Any] = {}
    positional = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            positional.append(word)
            continue
        flag, equals, value = word.partition("=")
        option = by_flag.get(flag)
        if option is None or (equals and (option.switch or not flag.startswith("--"))):
            return None
        if option.switch:
            given[option.name] = flag != option.off
            continue
        if not equals:
            following = next(rest, None)
            if following is None:
                return None
            value = following
        if option.many:
            given.setdefault(option.name, []).append(value)
        else:
            given[option.name] = value
    return given if _place(command.arguments, positional, given) else None


def _place(arguments: tuple[Argument, ...], positional: list[str], given: dict[str, Any]) -> bool:
    """Give positional words to their arguments; False if there are too few or too many."""
    left = list(positional)
    for argument in arguments:
        if argument.many:
            taken, left = left, []
            value: Any = taken
        else:
            taken, left = left[:1], left[1:]
            value = taken[0] if taken else None
        if taken:
            given[argument.name] = value
        elif argument.required and "json_schema" not in given:
            return False
    return not left
