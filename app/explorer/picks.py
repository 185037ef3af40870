"""Small inputs of pages, whose choice is a word of the link."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import streamlit as st

from explorer.state import bound, listed, set_words, words


def pick(text: str, name: str, choices: Mapping[str, str], about: str | None = None) -> str:
    """One of a few, by the word that stands in the link; the first while none does."""
    first = next(iter(choices))
    word = words().get(name, first)
    key = bound(f"view.{name}", word if word in choices else first)
    st.segmented_control(
        text,
        list(choices),
        key=key,
        format_func=choices.__getitem__,
        required=True,
        help=about,
        on_change=_picked,
        args=(name, first),
    )
    return str(st.session_state[key])


def _picked(name: str, first: str) -> None:
    word = st.session_state[f"view.{name}"]
    set_words({name: None if word == first else word})


def pick_many(
    text: str,
    name: str,
    known: Sequence[str],
    default: Sequence[str] = (),
    shown: Callable[[str], str] = str,
    placeholder: str = "all",
    about: str | None = None,
    most: int | None = None,
) -> list[str]:
    """Some of many; the default while the link names none."""
    wanted = [one for one in listed(name, default) if one in known][:most]
    key = bound(f"view.{name}", wanted)
    st.multiselect(
        text,
        known,
        key=key,
        format_func=shown,
        max_selections=most,
        placeholder=placeholder,
        help=about,
        on_change=_picked_many,
        args=(name, tuple(default)),
    )
    return wanted


def _picked_many(name: str, default: tuple[str, ...]) -> None:
    chosen = tuple(st.session_state[f"view.{name}"])
    set_words({name: None if chosen == default else ",".join(chosen)})
