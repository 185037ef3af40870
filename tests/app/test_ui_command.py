"""`peftplan ui`: where it serves, what it needs, and what it refuses. No page is drawn here."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from peftplan.cli import main, ui
from peftplan.errors import BadInput


@pytest.fixture
def served(monkeypatch):
    """The server's command lines, instead of a server."""
    started = []
    monkeypatch.setattr(ui, "find_spec", lambda name: name)
    monkeypatch.setattr("runpy.run_module", lambda *about, **more: started.append(list(ui.sys.argv)))
    monkeypatch.setattr(ui.sys, "argv", ["peftplan"])
    return started


def flags(words):
    """The server's settings, by name."""
    return dict(word.removeprefix("--").split("=", 1) for word in words[3:])


def test_it_serves_this_machine_alone(served, capsys):
    """Unless told otherwise the server listens on the loopback address, and says nothing of others."""
    assert main(["ui"]) == 0
    settings = flags(served[0])
    assert settings["server.address"] == "127.0.0.1"
    assert settings["browser.gatherUsageStats"] == "false"
    assert settings["server.headless"] == "false"
    assert served[0][:2] == ["streamlit", "run"]
    assert capsys.readouterr().err == ""


def test_another_address_is_served_when_it_is_asked_for_and_told(served, capsys):
    """With --host others can reach the explorer, which is said."""
    assert main(["ui", "--host", "0.0.0.0", "--no-browser"]) == 0  # noqa: S104
    settings = flags(served[0])
    assert settings["server.address"] == "0.0.0.0"  # noqa: S104
    assert settings["server.headless"] == "true"
    assert "can use the explorer" in capsys.readouterr().err


def test_the_entry_is_found_beside_the_package_or_inside_it():
    """In a checkout and in an installed package there is a file to serve."""
    assert ui.entry_file().name == "main.py"
    assert (ui.entry_file().parent / "explorer" / "pages.py").is_file()


def test_without_its_libraries_it_says_what_to_install(monkeypatch, capsys):
    """Without the extra the command ends with 5 and one line."""
    monkeypatch.setattr(ui, "find_spec", lambda name: None)
    assert main(["ui"]) == 5
    message = capsys.readouterr().err
    assert message.startswith("error: the explorer needs streamlit")
    assert "pip install 'peftplan[ui]'" in message
    assert message.count("\n") == 1


def test_a_port_that_is_taken_is_refused(served, capsys):
    """A port in use is named; without --port the next free one is taken."""
    with closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        assert main(["ui", "--port", str(taken)]) == 2
    assert f"--port {taken} on 127.0.0.1 cannot be used" in capsys.readouterr().err
    assert not served


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1", ""])
def test_a_port_out_of_bounds_is_refused(served, capsys, port):
    """Ports are whole numbers from 1 to 65535."""
    assert main(["ui", f"--port={port}"]) == 2
    assert "give a whole number from 1 to 65,535" in capsys.readouterr().err


def test_an_address_that_is_none_is_refused(served, capsys):
    """A host that cannot be resolved is named."""
    assert main(["ui", "--host", "not an address"]) == 2
    assert "is no address" in capsys.readouterr().err


def test_the_first_free_port_is_taken(monkeypatch):
    """Ports are tried one after the other; where none is free, that is said."""
    monkeypatch.setattr(ui, "_refusal", lambda host, port: "taken" if port < 8503 else "")
    assert ui._free_port("127.0.0.1", None) == 8503
    monkeypatch.setattr(ui, "_refusal", lambda host, port: "taken")
    with pytest.raises(BadInput, match="no port from 8501"):
        ui._free_port("127.0.0.1", None)
