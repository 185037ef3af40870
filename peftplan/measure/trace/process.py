"""Runs jobs in a child process: what happens in there - an abort in native code, no memory left - is one line here.

A worker starts its child with the first job and keeps it for the next ones, which then need not load torch
again. The child ends with the worker, and whatever becomes of this process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from peftplan.errors import BadInput, MachineLacks, NotFound, PeftplanError
from peftplan.measure.trace.job import META_CANNOT_SEE, Job
from peftplan.measure.trace.recording import Recording

Progress = Callable[[float, str], None]

# The working directory is taken off the path before anything is imported: it may hold a model's code.
_START = (
    "import sys; root = sys.argv.pop(); sys.path[:] = [p for p in sys.path if p]; "
    "root in sys.path or sys.path.insert(0, root); "
    "from peftplan.measure.trace.child import main; main()"
)
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",  # a real device is not touched
    "HIP_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # nothing is computed
    "PYTHONUNBUFFERED": "1",
    "PYTHONIOENCODING": "utf-8",
}
_KINDS: dict[str, type[PeftplanError]] = {"BadInput": BadInput, "MachineLacks": MachineLacks, "NotFound": NotFound}
_LAST_WORDS_BYTES = 4096
_LONGEST_WORDS = 200
_PATIENCE_S = 10.0
REMEDY = "trace fewer blocks (--layers, --fast), or take --engine closed"


class ChildDied(MachineLacks):
    """The child ended in the middle of a job."""

    def __init__(self, message: str, by_signal: str) -> None:
        super().__init__(message)
        self.by_signal = by_signal


class Worker:
    """A child process that runs one job after another; to be used as a context manager."""

    def __init__(self, command: Sequence[str] | None = None) -> None:
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, job: Job, progress: Progress | None = None) -> Recording:
        """What the job leaves behind; where native code fails on fake CUDA tensors, the meta device is tried."""
        if self._command is None:
            check_installed(job)
        try:
            return Recording.from_json(self._ask("trace", job, progress))
        except ChildDied as died:
            if job.device != "cuda" or died.by_signal not in ("SIGABRT", "SIGSEGV", "SIGILL", "SIGBUS"):
                raise
            reason = f"on it torch ended with {died.by_signal}"
        recording = Recording.from_json(self._ask("trace", replace(job, device="meta"), progress))
        recording.facts.setdefault("notes", []).append(META_CANNOT_SEE.format(reason=reason))
        return recording

    def blocks(self, job: Job, progress: Progress | None = None) -> dict[str, Any] | None:
        """Where the job's model has its blocks, and their kinds; None where it has no one list of them."""
        if self._command is None:
            check_installed(job)
        found: dict[str, Any] | None = json.loads(self._ask("blocks", job, progress))
        return found

    def close(self) -> None:
        """End the child, whatever it is doing."""
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

    def _ask(self, word: str, job: Job, progress: Progress | None) -> str:
        """What the child answers, as JSON."""
        child = self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(f"{word} {job.to_json()}\n".encode())
            child.stdin.flush()
        except OSError:  # it died between two jobs
            raise self._death() from None
        for line in child.stdout:
            said, _, text = line.decode().partition(" ")
            if said == "error":
                raise self._error(json.loads(text))
            if said != "progress":
                return text
            if progress is not None:
                progress(*json.loads(text))
        raise self._death()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is not None:
            return self._child
        if not sys.executable:
            raise MachineLacks("the trace starts a second Python, and this one does not know its own program")
        root = str(Path(__file__).resolve().parents[3])  # where the package lies
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        try:
            self._child = subprocess.Popen(  # noqa: S603 - this Python, with a program of its own
                self._command or [sys.executable, "-c", _START, root],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env={**os.environ, **_ENVIRONMENT},
            )
        except OSError as error:
            self.close()
            raise MachineLacks(f"the trace's process cannot be started ({error.strerror or error})") from None
        return self._child

    def _error(self, told: dict[str, Any]) -> PeftplanError:
        kind = _KINDS.get(told["kind"])
        if kind is not None:
            return kind(told["message"])
        self._show_if_debugging()
        self.close()  # who knows what state it is in
        return MachineLacks(f"the real libraries fail on this run: {_cut(told['message'])}; take --engine closed")

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
            how += ", as the system does when memory runs out"
        said = f" (it said: {words})" if words else ""
        return ChildDied(f"the trace's process {how}{said}; {REMEDY}", name)

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


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_WORDS else line[: _LONGEST_WORDS - 3] + "..."


def check_installed(job: Job) -> None:
    """Refuse a job for which a library is missing, before a process is started."""
    needed = ["torch", "transformers"]
    if job.peft is not None:
        needed.append("peft")
    if job.quantization is not None:
        needed.append("bitsandbytes")
    missing = [name for name in needed if not _is_installed(name)]
    if missing:
        raise MachineLacks(
            f"the trace runs the real libraries, and {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed; pip install 'peftplan[trace]'"
        )


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
