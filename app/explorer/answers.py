"""Asking the planner: one question at a time, and whatever it refuses as one line on the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, TypeVar

import streamlit as st

from peftplan.cli import one_line
from peftplan.errors import PeftplanError

T = TypeVar("T")

# What the planner keeps between requests is made for one caller at a time; sessions are threads of one process.
ONE_AT_A_TIME = Lock()


def asked(question: Callable[[], T], place: Any = st) -> T | None:
    """The answer; or None, and in its place on the page the line that the command line would print."""

    def alone() -> T:
        with ONE_AT_A_TIME:
            return question()

    return told(alone, place)


def told(question: Callable[[], T], place: Any = st) -> T | None:
    """As `asked`, of what lets others in between by itself."""
    try:
        return question()
    except PeftplanError as error:
        refuse(str(error), place)
    except Exception as error:  # noqa: BLE001  # whatever happens is told in one line, the page goes on
        refuse(f"unexpected {type(error).__name__}: {error}", place)
    return None


def refuse(text: str, place: Any = st) -> None:
    """One line on what cannot be answered."""
    place.error(one_line(text).replace("$", "\\$").replace("[", "\\["), icon=":material/error:")


def filled_fields(words: Mapping[str, str]) -> dict[str, Any]:
    """The request's fields with their defaults filled in; none where the words are refused."""
    from explorer.words import request_of
    from peftplan.resolve import resolve

    try:
        with ONE_AT_A_TIME:
            return dict(resolve(request_of(words)).request)
    except Exception:  # noqa: BLE001  # the page asks again and tells
        return {}
