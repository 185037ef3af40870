"""A child process that runs torch: what happens there - an abort in native code, no memory left - is one line here.

It is started with the first question, kept for the next ones, which then need not load torch again, and ends with
whoever asks. Questions and answers are lines; see `answering`, which is the child's side.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from peftplan.errors import BadInput, MachineLacks, NotFound, PeftplanError

Progress = Callable[[float, str], None]
Own = TypeVar("Own", bound="ChildProcess")

# The working directory is taken off the path before anything is imported: it may hold a model's code.
_START = (
    "import sys; root = sys.argv.pop(); sys.path[:] = [p for p in sys.path if p]; "
    "root in sys.path or sys.path.insert(0, root); "
    "from {program} import main; main()"
)
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    "PYTHONIOENCODING": "utf-8",
}
_KINDS: dict[str, type[PeftplanError]] = {"BadInput": BadInput, "MachineLacks": MachineLacks, "NotFound": NotFound}
_LAST_WORDS_BYTES = 4096
_LONGEST_WORDS = 200
_PATIENCE_S = 10.0


class ChildDied(MachineLacks):
    """The child ended in the middle of its work; `by_signal` names what ended it, if a signal did."""

    def __init__(self, message: str, by_signal: str = "") -> None:
        super().__init__(message)
        self.by_signal = by_signal


class ChildProcess:
    """One child; to be used as a context manager. Subclasses say what runs in it and how its failures are told."""

    program = ""  # the module whose `main` the child runs
    called = "the process"  # in messages
    remedy = ""  # what to do when it dies
    settings: Mapping[str, str] = {}  # of its environment, beside those of every child
    defaults: Mapping[str, str] = {}  # of its environment, where this process has no other

    def __init__(self, command: Sequence[str] | None = None) -> None:
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child, whatever it is doing: what it held on a device is given back by the driver."""
        child, self._child = self._child, None
        said, self._said = self._said, None
        if child is not None:
            child.kill()
            for stream in (child.stdin, child.stdout):
                with suppress(OSError):
                    stream and stream.close()
            child.wait()
        if said is not None:
            said.close()

    def failed(self, words: str) -> PeftplanError:
        """How an error that is none of peftplan's own is told."""
        raise NotImplementedError

    def ask(self, line: str, progress: Progress | None = None) -> str:
        """What the child answers to a line, as JSON."""
        child = self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(line.encode() + b"\n")
            child.stdin.flush()
        except OSError:  # it died between two questions
            raise self._death() from None
        for answer in child.stdout:
            word, _, text = answer.decode().partition(" ")
            if word == "error":
                raise self._error(json.loads(text))
            if word != "progress":
                return text
            if progress is not None:
                progress(*json.loads(text))
        raise self._death()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is not None:
            return self._child
        if not sys.executable:
            raise MachineLacks(f"{self.called} is a second Python, and this one does not know its own program")
        root = str(Path(__file__).resolve().parents[2])  # where the package lies
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        try:
            self._child = subprocess.Popen(  # noqa: S603 - this Python, with a program of its own
                self._command or [sys.executable, "-c", _START.format(program=self.program), root],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env={**self.defaults, **os.environ, **_ENVIRONMENT, **self.settings},
            )
        except OSError as error:
            self.close()
            raise MachineLacks(f"{self.called} cannot be started ({error.strerror or error})") from None
        return self._child

    def _error(self, told: Mapping[str, Any]) -> PeftplanError:
        kind = _KINDS.get(told["kind"])
        if kind is not None:
            return kind(told["message"])
        self._show_if_debugging()
        self.close()  # who knows what state it is in
        return self.failed(_cut(told["message"]))

    def _death(self) -> ChildDied:
        child = self._child
        assert child is not None
        try:
            status = child.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:  # it closed its output and goes on
            status = 0
        self._show_if_debugging()
        words = self._last_words()
        self.close()
        name = ""
        if status < 0:
            with suppress(ValueError):
                name = signal.Signals(-status).name
        how = f"was ended by {name or f'signal {-status}'}" if status < 0 else f"ended with status {status}"
        if name == "SIGKILL":
            how += ", as the system does when the host's memory runs out"
        said = f" (it said: {words})" if words else ""
        return ChildDied(f"{self.called} {how}{said}{self.remedy}", name)

    def _last_words(self) -> str:
        """The last line that the child wrote to stderr."""
        text = self._stderr()[-_LAST_WORDS_BYTES:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return _cut(lines[-1]) if lines else ""

    def _stderr(self) -> bytes:
        if self._said is None:
            return b""
        self._said.seek(0)
        return self._said.read()

    def _show_if_debugging(self) -> None:
        if os.environ.get("PEFTPLAN_DEBUG"):
            sys.stderr.write(self._stderr().decode(errors="replace"))


def missing_of(names: Iterable[str]) -> str:
    """Which of the libraries are not installed, in words with their verb; empty if all are."""
    missing = [name for name in names if not _is_installed(name)]
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed" if missing else ""


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_WORDS else line[: _LONGEST_WORDS - 3] + "..."


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
