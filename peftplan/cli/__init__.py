"""The command line: one file per command, loaded when it is asked for.

Well-formed command lines are read by `fast`, without typer, so that an answer comes quickly; help,
completion and whatever is misspelt go to typer. Both read the same description of a command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from peftplan.errors import EXIT_BAD_INPUT, PeftplanError

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # what a shell reports of a program that wrote to a closed pipe


def main(words: Sequence[str] | None = None) -> int:
    """Run one command line; the answer goes to stdout, messages to stderr, the result is the exit status."""
    try:
        status = _run(list(sys.argv[1:] if words is None else words))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _drop_stdout()
        return EXIT_BROKEN_PIPE
    except Exception as error:  # noqa: BLE001  # whatever happens is told in one line
        return _refuse(error)
    return status


def _run(words: list[str]) -> int:
    # No plugin changes how a request is validated, and looking for some reads every installed package.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    from peftplan.cli.fast import run_well_formed

    status = run_well_formed(words)
    if status is None:
        from peftplan.cli.typed import run_with_typer

        status = run_with_typer(words)
    return status


def _refuse(error: Exception) -> int:
    """One line on stderr, and the status that goes with the error."""
    if os.environ.get("PEFTPLAN_DEBUG"):
        import traceback

        traceback.print_exc()
    if isinstance(error, PeftplanError):
        text, status = str(error), error.exit_code
    elif isinstance(error, OSError):
        text, status = f"{error.strerror or error}: {error.filename or 'output'}", EXIT_BAD_INPUT
        if error.filename is None:
            _drop_stdout()
    else:
        text = f"unexpected {type(error).__name__}: {error} (PEFTPLAN_DEBUG=1 shows where)"
        status = EXIT_BAD_INPUT
    print(f"error: {one_line(text)}", file=sys.stderr)
    return status


def one_line(text: str) -> str:
    """Text without line breaks and control signs, whatever a user's value holds."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def _drop_stdout() -> None:
    """Nothing more can be written: what is still buffered must not fail again when Python ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
