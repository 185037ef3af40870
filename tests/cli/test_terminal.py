"""Terminals, pipes and files: narrow ones, colourless ones, closed ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

WORDS = {
    "estimate": ("estimate", "llama-7b", "--gpu", "rtx4090"),
    "unfit": ("estimate", "llama-7b", "--method", "full", "--gpu", "rtx4090"),
    "compare": ("compare", "llama-7b"),
    "explain": ("explain", "llama-7b", "--method", "qlora"),
    "models": ("models", "llama"),
    "gpus": ("gpus",),
    "methods": ("methods",),
    "doctor": ("doctor",),
}
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and /dev")


def start(*words: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "peftplan", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("form", ["--plain", None])
def test_screens_keep_to_the_width(run, name, columns, form):
    """No line is wider than the terminal, from 60 columns on."""
    words = [*WORDS[name], form] if form else WORDS[name]
    done = run(*words, columns=columns)
    assert done.status == 0
    assert [line for line in done.out.splitlines() if len(line) > columns] == []


@pytest.mark.parametrize("columns", ["0", "1", "19", "-5", "many"])
def test_absurd_widths_do_no_harm(run, columns):
    """A terminal that claims no or few columns still gets an answer."""
    done = run("estimate", "gpt2", columns=columns)
    assert done.status == 0
    assert "GiB" in done.out


def test_no_color_means_no_escapes(run):
    """With NO_COLOR set, the screen has no escape sequences and its bar is drawn in letters."""
    out = run(*WORDS["estimate"]).out
    assert "\x1b" not in out
    assert any(line.startswith("WWWW") for line in out.splitlines())


def test_a_pipe_gets_no_colour():
    """Where stdout is no terminal there are no escapes, without any option."""
    process = start("estimate", "gpt2", NO_COLOR="")
    out, _ = process.communicate()
    assert b"\x1b" not in out


def test_plain_is_letters_and_lines(run):
    """`--plain` has neither colour nor box-drawing signs."""
    out = run(*WORDS["estimate"], "--plain").out
    assert out.isascii()


@pytest.mark.parametrize("form", ["--json", "--plain", "--markdown", "--csv", None])
def test_an_ascii_terminal_is_served(form):
    """A stdout that cannot encode a sign gets another one, not a failure."""
    words = ("estimate", "gpt2", *([form] if form else []))
    process = start(*words, PYTHONIOENCODING="ascii")
    out, err = process.communicate()
    assert process.returncode == 0
    assert out.decode("ascii")
    assert err == b""


@POSIX
def test_a_closed_pipe_is_quiet():
    """Writing to a pipe that nobody reads ends with 141, without a word."""
    process = start("models", "--csv")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 141
    assert err == b""


@POSIX
@pytest.mark.parametrize("form", ["--json", "--plain", None])
def test_a_full_disk_is_one_line(form):
    """An answer that cannot be written is an error of one line."""
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "peftplan", "estimate", "gpt2", *([form] if form else [])],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"No space left" in done.stderr


@POSIX
def test_closed_streams_do_no_harm():
    """Without stdout or stderr the exit status is all that is left, and it is right."""
    for redirection, status in (("estimate gpt2 --json >&-", 0), ("estimate nope 2>&-", 4)):
        line = f"{sys.executable} -m peftplan {redirection}"
        done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=False)
        assert done.returncode == status


@POSIX
def test_an_interrupt_ends_with_130():
    """A signal during a long answer ends it quietly."""
    code = (
        "import time, peftplan.planner as p; p.estimate = lambda request: time.sleep(30); "
        "print('ready', flush=True); from peftplan.cli import main; "
        "raise SystemExit(main(['estimate', 'gpt2']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    import time

    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == b""
