"""What every page ends with: the same answer elsewhere - the command, the snippet, the files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import streamlit as st

from explorer.answers import ONE_AT_A_TIME
from explorer.state import words
from explorer.words import CONFIG, CONFIG_FILE, LONGEST_IN_LINK, unpacked
from peftplan.render.blocks import Block
from peftplan.render.markdown import markdown

_KINDS = {"json": "application/json", "csv": "text/csv", "md": "text/markdown", "svg": "image/svg+xml"}


def share(command: str, snippet: str, name: str, texts: dict[str, Callable[[], str]]) -> None:
    """The command and the snippet that give the answer of this page, and the answer as files by their kind.

    A file is made when it is asked for.
    """
    st.markdown("##### Take it with you")
    st.caption("The address of this page reopens it as it is. The command and the snippet give the same answer.")
    if len(words().get(CONFIG, "")) > LONGEST_IN_LINK:
        st.caption("The config is too long for a link: who opens it is asked for the config.")
    shell, python = st.tabs(["Command line", "Python"])
    shell.code(command, language="bash", wrap_lines=True)
    python.code(snippet, language="python", wrap_lines=True)
    with st.container(horizontal=True):
        for kind, text in texts.items():
            st.download_button(
                kind.upper() if kind != "md" else "Markdown",
                data=partial(_made, text),
                file_name=f"{name}.{kind}",
                mime=_KINDS[kind],
                key=f"download.{name}.{kind}",
                on_click="ignore",
                icon=":material/download:",
            )
        if words().get(CONFIG):
            config = words()[CONFIG]
            st.download_button(
                CONFIG_FILE,
                data=lambda: _indented(config),
                file_name=CONFIG_FILE,
                mime=_KINDS["json"],
                on_click="ignore",
                icon=":material/download:",
            )


def _made(text: Callable[[], str]) -> str:
    """A file's content, made by whatever thread serves it."""
    with ONE_AT_A_TIME:
        return text()


def _indented(config: str) -> str:
    import json

    return json.dumps(unpacked(config), indent=2) + "\n"


def as_markdown(blocks: Callable[[], Iterable[Block]]) -> Callable[[], str]:
    """Blocks as a Markdown document, made when it is asked for."""
    return lambda: markdown(blocks())
