"""One run in a child process of its own: whatever happens in there, this process and the record stay clean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from peftplan.errors import MachineLacks, PeftplanError
from peftplan.measure.process import ChildDied, ChildProcess, Progress, missing_of
from peftplan.measure.profile.task import Task
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.process import needed_libraries


class RunFailed(ChildDied):
    """The run did not come to an end, and not because memory ran out on the device."""


class Child(ChildProcess):
    """A child process on one device; to be used as a context manager."""

    program = "peftplan.measure.profile.child"
    called = "the run's process"
    defaults = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # as the driver numbers GPUs  # noqa: RUF012 - never changed

    def __init__(self, device: str, command: Sequence[str] | None = None) -> None:
        super().__init__(command)
        self.device = device
        self._hardware: dict[str, Any] | None = None

    def hardware(self) -> dict[str, Any]:
        """What the device is; raises MachineLacks where there is none."""
        if self._hardware is None:
            self._hardware = json.loads(self.ask(json.dumps({"device": self.device})))
        return self._hardware

    def measure(self, task: Task, progress: Progress | None = None) -> dict[str, Any]:
        """What the run took; running out of memory is an outcome, anything else raises RunFailed."""
        self.hardware()
        try:
            measured: dict[str, Any] = json.loads(self.ask(task.to_json(), progress))
        except ChildDied as died:
            raise RunFailed(str(died), died.by_signal) from None
        return measured

    def failed(self, words: str) -> PeftplanError:
        """What a library raised."""
        return RunFailed(f"the run failed: {words}")


def check_installed(job: Job | None = None) -> None:
    """Refuse a run - or, without a job, any - for which a library is missing, before a process is started."""
    missing = missing_of(["torch", "transformers"] if job is None else needed_libraries(job))
    if missing:
        raise MachineLacks(
            f"a profile runs the real libraries, and {missing}; pip install 'peftplan[profile]' "
            "(without a GPU: --device cpu), or take `peftplan estimate`, which needs none of them"
        )
