"""Errors a user can act on: what was given, what is allowed, what to do. One line each."""

from __future__ import annotations

# Exit statuses of the command line, as the public interface fixes them.
EXIT_OK = 0
EXIT_DOES_NOT_FIT = 1
EXIT_BAD_INPUT = 2
EXIT_UNCERTAIN = 3
EXIT_NOT_FOUND = 4
EXIT_MACHINE_LACKS = 5


class PeftplanError(Exception):
    """Base of every error that peftplan raises on purpose; `exit_code` is the command's status."""

    exit_code = EXIT_BAD_INPUT

    def __init__(self, message: str) -> None:
        # names come from users and files: whatever they hold, the message is one printable line
        super().__init__("".join(ch if ch.isprintable() else " " for ch in message))


def shown(value: object, limit: int = 60) -> str:
    """A value as an error message shows it: its repr, cut to `limit` characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= limit else text[: limit - 3] + "..."


class BadInput(PeftplanError):
    """A value, a combination of values or a config that cannot be used."""


class NotFound(PeftplanError):
    """A model, a config file or a GPU that does not exist under the given name."""

    exit_code = EXIT_NOT_FOUND


class MachineLacks(PeftplanError):
    """Something that this machine does not have: a GPU, an extra, a child process that lives."""

    exit_code = EXIT_MACHINE_LACKS
