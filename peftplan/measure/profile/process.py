"""One run in a child process of its own: whatever happens in there, this process and the record stay clean."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from peftplan.errors import BadInput, MachineLacks, NotFound, PeftplanError
from peftplan.measure.profile.task import Task
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.process import _cut, _is_installed

Progress = Callable[[float, str], None]

# The working directory is taken off the path before anything is imported: it may hold a model's code.
_START = (
    "import sys; root = sys.argv.pop(); sys.path[:] = [p for p in sys.path if p]; "
    "root in sys.path or sys.path.insert(0, root); "
    "from peftplan.measure.profile.child import main; main()"
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
_DEVICE_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # as the driver numbers GPUs
_KINDS: dict[str, type[PeftplanError]] = {"BadInput": BadInput, "MachineLacks": MachineLacks, "NotFound": NotFound}
_LAST_WORDS_BYTES = 4096
_PATIENCE_S = 10.0


class RunFailed(MachineLacks):
    """The run did not come to an end, and not because memory ran out on the device."""


class Child:
    """A child process on one device; to be used as a context manager."""

    def __init__(self, device: str, command: Sequence[str] | None = None) -> None:
        self.device = device
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._hardware: dict[str, Any] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def hardware(self) -> dict[str, Any]:
        """What the device is; raises MachineLacks where there is none."""
        if self._hardware is None:
            self._hardware = self._ask(json.dumps({"device": self.device}), "device", None)
        return self._hardware

    def measure(self, task: Task, progress: Progress | None = None) -> dict[str, Any]:
        """What the run took; running out of memory is an outcome, anything else raises."""
        self.hardware()
        return self._ask(task.to_json(), "measured", progress)

    def close(self) -> None:
        """End the child, whatever it is doing: the driver gives back what it held."""
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

    def _ask(self, line: str, wanted: str, progress: Progress | None) -> dict[str, Any]:
        child = self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(line.encode() + b"\n")
            child.stdin.flush()
        except OSError:
            raise self._death() from None
        for answer in child.stdout:
            word, _, text = answer.decode().partition(" ")
            if word == wanted:
                found: dict[str, Any] = json.loads(text)
                return found
            if word == "progress" and progress is not None:
                progress(*json.loads(text))
            elif word == "error":
                raise self._error(json.loads(text))
        raise self._death()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is not None:
            return self._child
        root = str(Path(__file__).resolve().parents[3])
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        try:
            self._child = subprocess.Popen(  # noqa: S603 - this Python, with a program of its own
                self._command or [sys.executable, "-c", _START, root],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env={**_DEVICE_ORDER, **os.environ, **_ENVIRONMENT},
            )
        except OSError as error:
            self.close()
            raise MachineLacks(f"the run's process cannot be started ({error.strerror or error})") from None
        return self._child

    def _error(self, told: Mapping[str, Any]) -> PeftplanError:
        kind = _KINDS.get(told["kind"])
        if kind is not None:
            return kind(told["message"])
        self._show_if_debugging()
        self.close()  # who knows what state it is in
        return RunFailed(f"the run failed: {_cut(told['message'])}")

    def _death(self) -> RunFailed:
        child = self._child
        assert child is not None
        try:
            status = child.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:  # it closed its output and goes on
            status = 0
        self._show_if_debugging()
        lines = [line.strip() for line in self._stderr()[-_LAST_WORDS_BYTES:].decode(errors="replace").splitlines()]
        words = next((_cut(line) for line in reversed(lines) if line), "")
        self.close()
        how = f"ended with status {status}"
        if status < 0:
            name = f"signal {-status}"
            with suppress(ValueError):
                name = signal.Signals(-status).name
            how = f"was ended by {name}"
            if name == "SIGKILL":
                how += ", as the system does when the host's memory runs out"
        return RunFailed(f"the run's process {how}" + (f" (it said: {words})" if words else ""))

    def _stderr(self) -> bytes:
        if self._said is None:
            return b""
        self._said.seek(0)
        return self._said.read()

    def _show_if_debugging(self) -> None:
        if os.environ.get("PEFTPLAN_DEBUG"):
            sys.stderr.write(self._stderr().decode(errors="replace"))


def check_installed(job: Job | None = None) -> None:
    """Refuse a run - or, without a job, any - for which a library is missing, before a process is started."""
    needed = ["torch", "transformers"]
    if job is not None and job.peft is not None:
        needed.append("peft")
    if job is not None and job.quantization is not None:
        needed.append("bitsandbytes")
    missing = [name for name in needed if not _is_installed(name)]
    if missing:
        raise MachineLacks(
            f"a profile runs the real libraries, and {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed; pip install 'peftplan[profile]' "
            "(without a GPU: --device cpu), or take `peftplan estimate`, which needs none of them"
        )
