"""Commands as typer sees them: help, shell completion, and one line about what is misspelt."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperGroup

import peftplan
from peftplan.cli.fast import COMPLETION_VARIABLE
from peftplan.cli.spec import COMMANDS, Argument, Command, Option, load_command
from peftplan.errors import BadInput

ABOUT = (
    "What fine-tuning a language model needs, from its config alone: no GPU, no weights, no torch.\n\n"
    "MODEL is a name from `peftplan models`, a config file, a folder with config.json, or a Hub id."
)

HELP_WIDTH = 110  # columns; longer lines are hard to read


class LazyGroup(TyperGroup):
    """Loads a command's file, and builds its parameters, when that command is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command called `cmd_name`, or None."""
        return build(cmd_name) if cmd_name in COMMANDS else None


def run_with_typer(words: list[str]) -> int:
    """Run the line; a usage error becomes a BadInput with the way to help."""
    if not words:
        words = ["--help"]
    if not words[0].startswith("-") and words[0] not in COMMANDS and COMPLETION_VARIABLE not in os.environ:
        near = get_close_matches(words[0], COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadInput(f"there is no command {words[0]!r}; there are {', '.join(COMMANDS)}{hint}")
    try:
        result = root().main(args=words, prog_name="peftplan", standalone_mode=False)
    except SystemExit as ended:  # completion ends so
        result = ended.code
    except Exception as error:
        # typer brings its own click or uses the installed one: its usage errors are known by what they can do
        told = getattr(error, "format_message", None)
        if told is None:
            raise
        named = words[0] if words[0] in COMMANDS else ""
        wanted = " ".join(part for part in ("peftplan", named, "--help") if part)
        raise BadInput(f"{told().rstrip('.')}; see `{wanted}`") from None
    return result if isinstance(result, int) else 0


def root() -> Any:
    """The group of all commands, none of them built yet."""
    app = typer.Typer(
        name="peftplan",
        cls=LazyGroup,
        help=ABOUT,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH},
    )

    version_option = typer.Option(False, "--version", help="Print the version.", is_eager=True)

    def start(version: bool = version_option) -> None:
        if version:
            print(peftplan.__version__)
            raise typer.Exit

    app.callback(invoke_without_command=True)(start)
    return typer.main.get_command(app)


def build(name: str) -> Any:
    """One command with its parameters."""
    command = load_command(name)

    def callback(**given: Any) -> int:
        return command.run({key: value for key, value in given.items() if value not in (None, [], ())})

    parameters = [
        *(_argument(argument) for argument in command.arguments),
        *(_option(option, command) for option in command.options),
    ]
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    text = COMMANDS[name] + (f"\n\n{command.details}" if command.details else "")
    app.command(name, help=text, short_help=COMMANDS[name])(callback)
    return typer.main.get_command(app)


def _argument(argument: Argument) -> inspect.Parameter:
    info = typer.Argument(
        ... if argument.required else None,
        metavar=argument.name.upper(),
        help=argument.help,
        show_default=False,
        autocompletion=_completion(argument.complete),
    )
    annotation: Any = list[str] if argument.many else str if argument.required else str | None
    return _parameter(argument.name, info, annotation)


def _option(option: Option, command: Command) -> inspect.Parameter:
    flags = list(option.flags)
    if option.off:
        flags[0] += f"/{option.off}"
    info = typer.Option(
        None,
        *flags,
        help=option.help(),
        metavar=None if option.switch else option.metavar,
        show_default=False,
        autocompletion=_completion(option.complete),
        is_eager=option.name == "json_schema",
        callback=_at_once(option, command) if option.name == "json_schema" else None,
    )
    annotation: Any = bool | None if option.switch else list[str] | None if option.many else str | None
    return _parameter(option.name, info, annotation)


def _parameter(name: str, info: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=annotation)


def _at_once(option: Option, command: Command) -> Callable[[bool | None], bool | None]:
    """Answer `--json-schema` before the arguments are asked for."""

    def answer(value: bool | None) -> bool | None:
        if value:
            raise typer.Exit(command.run({option.name: True}))
        return value

    return answer


def _completion(choices: Callable[[], Any] | None) -> Callable[[str], list[str]] | None:
    if choices is None:
        return None

    def complete(incomplete: str) -> list[str]:
        head, comma, last = incomplete.rpartition(",")
        start = last.lower()
        return [f"{head}{comma}{choice}" for choice in choices() if choice.lower().startswith(start)]

    return complete
