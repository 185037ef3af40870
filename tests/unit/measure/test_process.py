"""The child process: whatever becomes of it is one line here, and it never outlives who started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peftplan.errors import BadInput, MachineLacks, NotFound
from peftplan.measure import process
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.plan import plan_trace
from peftplan.measure.trace.process import Worker, check_installed
from peftplan.request import Request

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals")
FACTS = '{"pid": os.getpid(), "device": job["device"], "notes": []}'
RECORDING = f'{{"marks": [], "all_shapes": [], "facts": {FACTS}}}'
# A child that answers by a program of its own: `job` is what it was told.
STUB = """
import json, os, signal, sys, time
for line in sys.stdin:
    word, _, rest = line.partition(" ")
    job = json.loads(rest)
    {program}
"""


@pytest.fixture
def job() -> Job:
    return plan_trace(Request(model="gpt2")).job


def stub(program: str) -> list[str]:
    text = STUB.format(program=program.replace("\n", "\n    "))
    return [sys.executable, "-c", text]


def answers(word: str, value: str) -> str:
    return f"print({word!r}, json.dumps({value}), flush=True)"


def test_several_jobs_share_a_child(job: Job) -> None:
    """The second job is answered by the process of the first, which has its libraries loaded."""
    with Worker(stub(answers("recording", RECORDING))) as worker:
        first, second = worker.run(job), worker.run(job)
    assert first.facts["pid"] == second.facts["pid"] != os.getpid()


def test_progress_is_handed_on(job: Job) -> None:
    """What the child says of its progress arrives in order, before the recording."""
    program = "\n".join(
        (
            answers("progress", '[0.25, "half"]'),
            answers("progress", '[1.0, "all"]'),
            answers("recording", RECORDING),
        )
    )
    heard: list[tuple[float, str]] = []
    with Worker(stub(program)) as worker:
        worker.run(job, lambda done, label: heard.append((done, label)))
    assert heard == [(0.25, "half"), (1.0, "all")]


@pytest.mark.parametrize(("kind", "status"), [(BadInput, 2), (MachineLacks, 5), (NotFound, 4)])
def test_errors_keep_their_class(job: Job, kind: type[Any], status: int) -> None:
    """An error that the child raises on purpose is raised here, with its exit status and its words."""
    told = answers("error", f'{{"kind": {kind.__name__!r}, "message": "what and why"}}')
    with Worker(stub(told)) as worker, pytest.raises(kind, match=r"^what and why$") as caught:
        worker.run(job)
    assert caught.value.exit_code == status


def test_a_librarys_failure_names_what_to_do(job: Job) -> None:
    """An error that is none of peftplan's own is one line that names it and a way out."""
    told = answers("error", '{"kind": "unexpected", "message": "KeyError: 1\\nand more"}')
    with Worker(stub(told)) as worker, pytest.raises(MachineLacks) as caught:
        worker.run(job)
    assert str(caught.value) == ("the real libraries fail on this run: KeyError: 1 and more; take --engine closed")


@POSIX
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGABRT"])
def test_a_child_that_is_killed_is_named_with_its_signal(job: Job, name: str) -> None:
    """The signal, the last words on stderr and what to do, in one line; the exit status is 5."""
    program = f'sys.stderr.write("first\\nlast words\\n"); sys.stderr.flush(); os.kill(os.getpid(), signal.{name})'
    with Worker(stub(program)) as worker, pytest.raises(MachineLacks) as caught:
        worker.run(replace(job, device="meta"))
    text = str(caught.value)
    assert caught.value.exit_code == 5
    assert f"was ended by {name}" in text
    assert "last words" in text
    assert "first" not in text
    assert "--layers" in text
    assert ("memory runs out" in text) is (name == "SIGKILL")


def test_a_child_that_gives_up_is_named_with_its_status(job: Job) -> None:
    """Without a signal it is the exit status that is told."""
    with Worker(stub("sys.exit(3)")) as worker, pytest.raises(MachineLacks, match="ended with status 3"):
        worker.run(job)


def test_a_worker_goes_on_after_a_death(job: Job) -> None:
    """The next job gets a new child."""
    program = f'sys.exit(3) if job["seq_len"] == 7 else {answers("recording", RECORDING)}'
    with Worker(stub(program)) as worker:
        with pytest.raises(MachineLacks):
            worker.run(replace(job, seq_len=7))
        assert worker.run(job).facts["device"] == "cuda"


@POSIX
def test_an_abort_on_fake_cuda_is_tried_again_on_meta(job: Job) -> None:
    """Where native code aborts, the job runs on the meta device, and a note says what that cannot see."""
    program = f'os.abort() if job["device"] == "cuda" else {answers("recording", RECORDING)}'
    with Worker(stub(program)) as worker:
        facts = worker.run(job).facts
    assert facts["device"] == "meta"
    assert "SIGABRT" in facts["notes"][0]
    assert "autocast" in facts["notes"][0]


@POSIX
def test_a_child_ends_with_its_parent() -> None:
    """However the parent ends, the child's stdin closes, and the child with it - in the middle of a job too."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


# Starts the real child in a job that never ends.
PARENT = """
import sys, time
from peftplan.measure import process
from peftplan.measure.trace.process import Worker, check_installed
start = "import sys, time; sys.argv.append('x'); import peftplan.measure.trace.child as c; "
start += "c._answer = lambda *_: time.sleep(600); c.main()"
worker = Worker([sys.executable, "-c", start])
child = worker._started()
child.stdin.write(b"trace {}\\n"); child.stdin.flush()
print(child.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" not in status.read_text()


@POSIX
def test_closing_ends_a_child_at_work(job: Job) -> None:
    """A worker that is left - by Ctrl-C, say - leaves no process behind."""
    with Worker(stub(answers("progress", "[0, str(os.getpid())]") + "\ntime.sleep(600)")) as worker:
        pids: list[int] = []

        def interrupt(_: float, label: str) -> None:
            pids.append(int(label))
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            worker.run(job, interrupt)
    assert not alive(pids[0])


def test_a_missing_extra_is_told_before_a_child_is_started(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the libraries the message names them and how to get them."""
    monkeypatch.setattr(process, "_is_installed", lambda name: name == "transformers")
    monkeypatch.setattr(process.subprocess, "Popen", lambda *_, **__: pytest.fail("a child was started"))
    with pytest.raises(MachineLacks) as caught, Worker() as worker:
        worker.run(job)
    assert "torch and peft are not installed; pip install 'peftplan[trace]'" in str(caught.value)


def test_full_fine_tuning_needs_no_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the job uses is asked for."""
    monkeypatch.setattr(process, "_is_installed", lambda name: name in ("torch", "transformers"))
    check_installed(plan_trace(Request(model="gpt2", method="full")).job)
    with pytest.raises(MachineLacks, match="peft and bitsandbytes"):
        check_installed(plan_trace(Request(model="gpt2", method="qlora")).job)


def test_code_in_the_working_directory_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's folder may hold files named like libraries: the child does not look there."""
    for name in ("json", "queue", "peftplan", "torch", "transformers"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of a model was imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with Worker() as worker:
        child = worker._started()
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"trace {}\n")
        child.stdin.flush()
        word, _, text = child.stdout.readline().decode().partition(" ")
    assert word == "error"
    assert json.loads(text)["kind"] == "unexpected"


@POSIX
def test_the_child_leaves_ctrl_c_to_its_parent(job: Job) -> None:
    """A SIGINT that a terminal sends to both does not end the child by itself."""
    with Worker() as worker:
        child = worker._started()
        assert child.stdin is not None
        assert child.stdout is not None
        for _ in range(2):
            child.stdin.write(b"trace {}\n")
            child.stdin.flush()
            assert child.stdout.readline().startswith(b"error")
            child.send_signal(signal.SIGINT)
        assert child.poll() is None
