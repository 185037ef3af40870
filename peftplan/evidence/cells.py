"""Cells of a published table as values; what cannot be read sets its row aside, with the reason."""

from __future__ import annotations

import re

from peftplan.errors import shown
from peftplan.evidence.tables import Row

# What tables write where a cell has nothing to say.
_BLANK = {"", "n/a", "na", "none stated", "unknown", "unstated", "not stated", "?"}
_NO = {"no", "none", "false", "off", "0"}
_YES = {"yes", "true", "on", "1"}


class SetAside(Exception):
    """A row that no prediction can be held against, and why, in one line."""


def text_of(row: Row, column: str) -> str:
    """A cell's words, empty where it says nothing."""
    words = row.get(column, "")
    return "" if words.lower() in _BLANK else words


def needed(row: Row, column: str) -> str:
    """A cell that a run cannot be described without."""
    words = text_of(row, column)
    if not words:
        raise SetAside(f"{column} is not stated")
    return words


def first_word(words: str) -> str:
    """`sdpa` of `sdpa (flash backend)`, in lower case; what follows a space, bracket or comma explains it."""
    return re.split(r"[\s(,;:]", words.strip(), maxsplit=1)[0].lower()


def whole(row: Row, column: str, default: int | None = None) -> int:
    """A positive whole number; `16.0` is one."""
    words = text_of(row, column)
    if not words and default is not None:
        return default
    try:
        value = float(needed(row, column))
    except ValueError:
        raise SetAside(f"{column} {shown(words)} is no number") from None
    if value != int(value) or value < 1:
        raise SetAside(f"{column} {shown(words)} is no whole number from 1")
    return int(value)


def number(row: Row, column: str) -> float | None:
    """A number, or None where the cell is blank."""
    words = text_of(row, column)
    if not words:
        return None
    try:
        return float(words)
    except ValueError:
        raise SetAside(f"{column} {shown(words)} is no number") from None


def flag(row: Row, column: str) -> bool | None:
    """Yes, no, or nothing: by the first word."""
    word = first_word(row.get(column, ""))
    if word in _NO:
        return False
    if word in _YES:
        return True
    if not word:
        return None
    raise SetAside(f"{column} {shown(row[column])} is neither yes nor no")
