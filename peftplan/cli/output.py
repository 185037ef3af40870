"""How an answer leaves the command: JSON, Markdown, CSV, plain text, or a rich screen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from peftplan.cli.spec import Option, switch
from peftplan.errors import BadInput

if TYPE_CHECKING:
    from peftplan.render.blocks import Block

FORMS = {
    "json": "print the answer as JSON",
    "markdown": "print Markdown",
    "csv": "print CSV",
    "plain": "print without colour and boxes",
}
SCHEMA = switch("json_schema", "print the JSON schema of the answer, and stop")
_NARROWEST = 20  # columns; below this no screen can be read, so it is drawn wider


def output_options() -> tuple[Option, ...]:
    """The options of every command that answers."""
    return (*(switch(name, text) for name, text in FORMS.items()), SCHEMA)


def chosen_form(given: Mapping[str, Any]) -> str:
    """The form asked for, `rich` without one; two are refused."""
    asked = [name for name in FORMS if given.get(name)]
    if len(asked) > 1:
        raise BadInput(f"--{asked[0]} and --{asked[1]} exclude each other; choose one form of output")
    return asked[0] if asked else "rich"


def emit(
    form: str,
    json_text: Callable[[], str],
    blocks: Callable[[], Iterable[Block]],
    csv_text: Callable[[], str],
) -> None:
    """Print the answer in the form asked for; only what that form needs is made and imported."""
    if form == "json":
        write_json(json_text())
    elif form == "csv":
        sys.stdout.write(csv_text())
    elif form == "markdown":
        from peftplan.render.markdown import markdown

        sys.stdout.write(markdown(blocks()))
    elif form == "plain":
        from peftplan.render.plain import plain

        sys.stdout.write(plain(blocks(), screen_width()))
    else:
        from rich.console import Console

        from peftplan.render.screen import draw

        console = Console(markup=False, highlight=False, emoji=False, width=screen_width())
        with console.capture() as drawn:  # written below, so that a closed pipe ends as it does elsewhere
            draw(blocks(), console)
        sys.stdout.write(drawn.get())


def write_json(text: str) -> None:
    """JSON on one line; where stdout cannot show a sign, it is escaped."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        import json

        text = json.dumps(json.loads(text))
    sys.stdout.write(text + "\n")


def write_schema(schema: Mapping[str, Any]) -> int:
    """A JSON schema, indented for reading."""
    import json

    write_json(json.dumps(schema, indent=2))
    return 0


def screen_width() -> int:
    """Columns of the terminal, of COLUMNS, or 80."""
    from shutil import get_terminal_size

    return max(get_terminal_size((80, 24)).columns, _NARROWEST)
