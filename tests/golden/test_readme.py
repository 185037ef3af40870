"""What the README says of options and commands is what the program has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from peftplan.cli.options import SHORT, allowed, flag_of
from peftplan.request import Request

README = Path(__file__).parents[2] / "README.md"
START, END = "<!-- options -->", "<!-- /options -->"


def options_table() -> str:
    """The table of options, from the fields of a request."""
    rows = ["| option | takes | default | |", "|---|---|---|---|"]
    for name, field in Request.model_fields.items():
        flag = f"`{flag_of(name)}`" + (f", `{SHORT[name]}`" if name in SHORT else "")
        takes = allowed(field)
        takes = "" if takes == field.description else takes
        default = field.get_default(call_default_factory=True)
        if field.is_required():
            default = "required"
        elif default is None or default == []:
            default = ""
        elif isinstance(default, bool):
            default = "on" if default else "off"
        rows.append(f"| {flag} | {takes} | {default} | {field.description} |")
    return "\n".join(rows)


def test_the_readme_lists_every_option(request: pytest.FixtureRequest) -> None:
    """The table between the markers is the one the request's fields make (--regenerate-golden renews it)."""
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(START)
    wanted = f"{head}{START}\n{options_table()}\n{END}{rest.split(END)[1]}"
    if request.config.getoption("--regenerate-golden"):
        README.write_text(wanted, encoding="utf-8")
    assert README.read_text(encoding="utf-8") == wanted


def test_the_readme_names_every_command() -> None:
    """Each command stands in the README with what it does."""
    from peftplan.cli.spec import COMMANDS as COMMANDS

    text = README.read_text(encoding="utf-8")
    missing = [name for name in COMMANDS if not re.search(rf"`peftplan {name}\b", text)]
    assert missing == []
