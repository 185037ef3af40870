"""Runs jobs in a child process, on fake CUDA tensors."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from peftplan.errors import MachineLacks, PeftplanError
from peftplan.measure.process import ChildDied, ChildProcess, Progress, missing_of
from peftplan.measure.trace.job import META_CANNOT_SEE, Job
from peftplan.measure.trace.recording import Recording

_NATIVE = ("SIGABRT", "SIGSEGV", "SIGILL", "SIGBUS")
REMEDY = "trace fewer blocks (--layers, --fast), or take --engine closed"


class Worker(ChildProcess):
    """A child process that runs one job after another; to be used as a context manager."""

    program = "peftplan.measure.trace.child"
    called = "the trace's process"
    remedy = f"; {REMEDY}"
    settings = {  # noqa: RUF012 - never changed
        "CUDA_VISIBLE_DEVICES": "",  # a real device is not touched
        "HIP_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",  # nothing is computed
    }

    def run(self, job: Job, progress: Progress | None = None) -> Recording:
        """What the job leaves behind; where native code fails on fake CUDA tensors, the meta device is tried."""
        if self._command is None:
            check_installed(job)
        try:
            return Recording.from_json(self.ask(f"trace {job.to_json()}", progress))
        except ChildDied as died:
            if job.device != "cuda" or died.by_signal not in _NATIVE:
                raise
            reason = f"on it torch ended with {died.by_signal}"
        job = replace(job, device="meta")
        recording = Recording.from_json(self.ask(f"trace {job.to_json()}", progress))
        recording.facts.setdefault("notes", []).append(META_CANNOT_SEE.format(reason=reason))
        return recording

    def blocks(self, job: Job, progress: Progress | None = None) -> dict[str, Any] | None:
        """Where the job's model has its blocks, and their kinds; None where it has no one list of them."""
        if self._command is None:
            check_installed(job)
        found: dict[str, Any] | None = json.loads(self.ask(f"blocks {job.to_json()}", progress))
        return found

    def failed(self, words: str) -> PeftplanError:
        """The libraries' own words, and what answers without them."""
        return MachineLacks(f"the real libraries fail on this run: {words}; take --engine closed")


# Libraries whose linears a packed base is made of; bitsandbytes' where none is named.
_PACKED_BY = {"hqq": ["hqq"], "fp8": list[str](), "gptq": ["gptqmodel"], "awq": ["gptqmodel"], "aqlm": ["aqlm"]}


def needed_libraries(job: Job) -> list[str]:
    """What a job imports."""
    needed = ["torch", "transformers"]
    if job.peft is not None:
        needed.append("peft")
    if job.quantization is not None:
        needed += _PACKED_BY.get(job.quantization.kind, ["bitsandbytes"])
    return needed


def check_installed(job: Job) -> None:
    """Refuse a job for which a library is missing, before a process is started."""
    missing = missing_of(needed_libraries(job))
    if missing:
        raise MachineLacks(f"the trace runs the real libraries, and {missing}; pip install 'peftplan[trace]'")
