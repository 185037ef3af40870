"""`peftplan ui`: serves the explorer, on this machine alone unless told otherwise."""

from __future__ import annotations

import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftplan.cli.options import counted
from peftplan.cli.spec import Command, Option, switch
from peftplan.errors import BadInput, MachineLacks, shown

LOOPBACK = "127.0.0.1"
FIRST_PORT = 8501
MAX_PORT = 65535
_PORTS_TRIED = 20
_PACKAGE = Path(__file__).parents[1]

# Nothing is sent anywhere, nobody is asked for an address, files are not watched; 64 MiB is the longest upload that
# any page takes. Colours: Okabe and Ito's blues.
SETTINGS = {
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "server.showEmailPrompt": "false",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": "64",
    "theme.light.primaryColor": "#0072b2",
    "theme.dark.primaryColor": "#56b4e9",
}


def run(given: dict[str, Any]) -> int:
    """Serve until interrupted."""
    host = given.get("host", LOOPBACK).strip()
    port = counted("--port", given.get("port"), MAX_PORT)
    entry = entry_file()
    require_library()
    free = _free_port(host, port)
    if host != LOOPBACK:
        print(f"{host}: whoever reaches this machine at port {free} can use the explorer", file=sys.stderr)
    import runpy

    sys.argv = server_words(entry, host, free, bool(given.get("no_browser")))
    # as `python -m streamlit`: its one interface that stays the same from release to release
    try:
        runpy.run_module("streamlit", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def entry_file() -> Path:
    """The explorer's entry: inside an installed package, beside the package in a checkout."""
    for folder in (_PACKAGE / "app", _PACKAGE.parent / "app"):
        if (folder / "main.py").is_file():
            return folder / "main.py"
    raise MachineLacks("the explorer's files are not installed; reinstall peftplan")


def require_library() -> None:
    """Refuse where what draws the pages is missing."""
    if find_spec("streamlit") is None:
        raise MachineLacks("the explorer needs streamlit, which is not installed: pip install 'peftplan[ui]'")


def server_words(entry: Path, host: str, port: int, headless: bool) -> list[str]:
    """The server's own command line."""
    settings = {
        **SETTINGS,
        "server.address": host,
        "server.port": str(port),
        "server.headless": "true" if headless else "false",
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return ["streamlit", "run", str(entry), *flags]


def _free_port(host: str, port: int | None) -> int:
    """The port asked for, or the first free one from the usual on."""
    if port is not None:
        refusal = _refusal(host, port)
        if refusal:
            raise BadInput(f"--port {port} on {host} cannot be used ({refusal}); give another")
        return port
    last = FIRST_PORT + _PORTS_TRIED - 1
    for tried in range(FIRST_PORT, last + 1):
        if not _refusal(host, tried):
            return tried
    raise BadInput(f"no port from {FIRST_PORT} to {last} can be used on {host}; give one with --port")


def _refusal(host: str, port: int) -> str:
    """Why a port cannot be served on; empty where it can."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError):
        raise BadInput(f"--host {shown(host)} is no address; give {LOOPBACK}, or 0.0.0.0 for every one") from None
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return error.strerror or str(error)
    return ""


COMMAND = Command(
    run,
    (),
    (
        Option("port", ("--port",), lambda: f"default: the first free one from {FIRST_PORT} on", metavar="INTEGER"),
        Option(
            "host",
            ("--host",),
            lambda: f"address to serve on; default {LOOPBACK}, which only this machine reaches",
            metavar="ADDRESS",
        ),
        switch("no_browser", "do not open a browser"),
    ),
    "Needs the extra `ui`. Ends with Ctrl-C.",
)
