"""Runs carried out, recorded and compared, with a child that stands for the real one."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from stand_in import A100, ANSWER

from peftplan import estimate
from peftplan.measure.profile.plan import plan_run
from peftplan.measure.profile.process import RunFailed
from peftplan.measure.profile.session import Session, Wanted
from peftplan.measured import read_record
from peftplan.request import Request

GPT2 = Request(model="gpt2", micro_batch=2, seq_len=512)


def measured_as_predicted(request=GPT2, factor=1.0, **changes):
    """What a child would say of a run that took just what is predicted, times a factor."""
    memory = estimate(plan_run(request, "cuda", A100).plan.request).memory
    told = copy.deepcopy({**ANSWER, **changes})
    told["figures"] |= {
        "allocated_bytes": round(memory.peak_allocated_bytes * factor),
        "reserved_bytes": round(memory.peak_reserved_bytes * factor),
        "device_bytes": round(memory.device_bytes * factor),
        "moments": {name: round(size * factor) for name, size in memory.moments.items()},
    }
    return told


def records(folder: Path):
    return [read_record(path.read_bytes(), path.name) for path in sorted(folder.glob("*.json"))]


@pytest.mark.parametrize(("factor", "within"), [(1.0, True), (0.98, True), (0.95, False), (1.06, False)])
def test_a_run_is_recorded_and_judged(tmp_path, start, factor, within):
    """The figures stand beside the prediction's, and are within tolerance or not."""
    with Session("cuda", tmp_path, start=start(measured_as_predicted(factor=factor))) as session:
        report = session.run(Wanted(GPT2))
    assert report.within_tolerance is within
    assert report.request["gpu"] == "a100-80"
    row = report.rows[0]
    assert row.measured_bytes == report.memory.measured.peak_allocated_bytes
    assert row.error_frac == pytest.approx(1 / factor - 1, abs=1e-6)
    (run,) = records(tmp_path)
    assert Path(report.record).name.startswith("nvidia-a100-sxm4-80gb-gpt2-lora-b2-s512-")
    assert run == report.measured
    answer = json.loads(report.model_dump_json())
    assert answer["memory"]["breakdown"]["bytes"] == answer["memory"]["peak_allocated_bytes"]
    assert answer["memory"]["measured"]["moments"].keys() == answer["memory"]["moments"].keys()


def test_one_tolerance_for_all(tmp_path, start):
    """A tolerance of one's own is used for every figure that is judged."""
    with Session("cuda", tmp_path, 0.06, start(measured_as_predicted(factor=0.95))) as session:
        assert session.run(Wanted(GPT2)).within_tolerance


@pytest.mark.parametrize(("micro_batch", "agrees"), [(2, False), (4000, True)])
def test_running_out_of_memory_is_an_outcome(tmp_path, start, micro_batch, agrees):
    """It is recorded; a prediction that said "fits" is wrong, one that said it does not is right."""
    request = GPT2.model_copy(update={"micro_batch": micro_batch})
    told = {**ANSWER, "outcome": "out_of_memory", "figures": {"allocated_bytes": 10**9}, "facts": {}}
    with Session("cuda", tmp_path, start=start(told)) as session:
        report = session.run(Wanted(request))
    assert report.outcome == "out_of_memory"
    assert report.within_tolerance is agrees
    assert [run.outcome for run in records(tmp_path)] == ["out_of_memory"]


def test_a_child_that_dies_is_told_in_one_line(tmp_path, start):
    """A run whose process is killed leaves no record, and says what it said last."""
    with Session("cuda", tmp_path, start=start(deed="die")) as session, pytest.raises(RunFailed) as caught:
        session.run(Wanted(GPT2))
    assert "SIGKILL" in str(caught.value)
    assert "something native gave up" in str(caught.value)
    assert records(tmp_path) == []


def grid_of(*ranks):
    return [partial(Wanted, GPT2.model_copy(update={"rank": rank})) for rank in ranks]


def test_a_list_is_resumed(tmp_path, start, log):
    """What is recorded is not carried out again; what is new is."""
    first = start(measured_as_predicted())
    with Session("cuda", tmp_path, start=first) as session:
        assert [done.was_recorded for done in session.run_all(grid_of(4, 8))] == [False, False]
    with Session("cuda", tmp_path, start=first) as session:
        again = list(session.run_all(grid_of(4, 8, 16)))
    assert [done.was_recorded for done in again] == [True, True, False]
    assert all(done.report is not None for done in again)
    assert len(log.read_text().splitlines()) == 3


def test_a_half_written_record_does_not_count(tmp_path, start, log):
    """A file that is no record is replaced by the run's."""
    with Session("cuda", tmp_path, start=start(measured_as_predicted())) as session:
        list(session.run_all(grid_of(4)))
        (path,) = tmp_path.glob("*.json")
        path.write_text(path.read_text()[:100])
        (done,) = session.run_all(grid_of(4))
    assert not done.was_recorded
    assert len(records(tmp_path)) == 1


def test_a_failed_run_keeps_no_other_back_and_is_tried_again(tmp_path, start, log):
    """In a list a failure is recorded as one, the next run goes on, and a later list tries it again."""
    with Session("cuda", tmp_path, start=start(deed="die")) as session:
        runs = list(session.run_all([*grid_of(4), partial(Wanted, Request(model="no-such-model")), *grid_of(8)]))
    assert [done.report for done in runs] == [None, None, None]
    assert "no-such-model" in runs[1].error
    assert [run.outcome for run in records(tmp_path)] == ["failed", "failed"]
    with Session("cuda", tmp_path, start=start(measured_as_predicted())) as session:
        runs = list(session.run_all(grid_of(4)))
    assert runs[0].report.outcome == "completed"
    assert {run.outcome for run in records(tmp_path)} == {"completed", "failed"}


_INTERRUPTED = """
import sys
sys.path.insert(0, sys.argv[1])
import json
from pathlib import Path
from peftplan.measure.profile.process import Child
from peftplan.measure.profile.session import Session, Wanted
from peftplan.request import Request
command = json.loads(sys.argv[3])
session = Session("cuda", Path(sys.argv[2]), start=lambda device: Child(device, command))
try:
    with session:
        tell = lambda *_: print("running", session._child._child.pid, flush=True)
        session.run(Wanted(Request(model="gpt2")), tell)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals to a process group")
def test_an_interrupt_leaves_nothing(tmp_path, start):
    """Ctrl-C, which goes to the whole group, ends the child and writes no record."""
    out = tmp_path / "records"
    out.mkdir()
    child = start(deed="wait")("cuda")
    root = Path(__file__).parents[4]
    running = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED, str(root), str(out), json.dumps(child._command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    _, pid = running.stdout.readline().split()
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait(20) == 130
    for _ in range(100):
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child lives on")
    assert list(out.iterdir()) == []
    running.stdout.close()
    running.stderr.close()
