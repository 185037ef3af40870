"""`peftplan profile` and `peftplan calibrate` from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from peftplan.measured import read_record
from peftplan.request import Request

ROOT = Path(__file__).parents[2]
needs_libraries = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("torch", "transformers", "peft", "bitsandbytes")),
    reason="needs the real libraries",
)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Records and calibration of these tests lie in folders of their own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


REFUSED = {
    "profile": (2, "MODEL is missing"),
    "profile gpt2 --device tpu": (2, "give one of cuda, cpu"),
    "profile gpt2 --weights mine": (2, "give one of random, real"),
    "profile gpt2 --steps 0": (2, "--steps 0"),
    "profile gpt2 --tolerance -1": (2, "--tolerance -1"),
    "profile gpt2 --tolerance many": (2, "--tolerance many"),
    "profile gpt2 --rank 0": (2, "--rank 0"),
    "profile gpt2 --json --csv": (2, "exclude each other"),
    "profile --grid none.yaml": (4, "--grid: 'none.yaml' does not exist"),
    "calibrate": (4, "holds no completed run on a GPU"),
    "calibrate --from nowhere": (4, "--from nowhere is no folder"),
    "calibrate --show": (4, "there is no calibration"),
    "calibrate --show --remove": (2, "exclude each other"),
}


@pytest.mark.parametrize("line", REFUSED)
def test_refused_in_one_line(run, line):
    """A wrong word is answered with its name and what is allowed, before anything is started."""
    status, words = REFUSED[line]
    done = run(*line.split())
    assert (done.status, done.out) == (status, "")
    assert words in done.err
    assert done.err.count("\n") == 1


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is here")
def test_without_torch_the_extra_is_named(run):
    """A machine without the libraries is told which extra brings them."""
    done = run("profile", "gpt2")
    assert done.status == 5
    assert "peftplan[profile]" in done.err


@needs_libraries
def test_without_a_gpu_the_cpu_is_named(run, tmp_path):
    """A machine without a GPU is told so in one line that names the way to try, and nothing is written."""
    done = run("profile", "gpt2", "--out", str(tmp_path / "out"))
    assert done.status == 5
    assert "--device cpu" in done.err
    assert done.err.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


@needs_libraries
def test_a_tiny_run_on_the_cpu(run):
    """Alone, `--device cpu` trains a tiny model, holds it against its trace and records it for the user."""
    done = run("profile", "--device", "cpu", "--steps", "1", "--warmup", "1", "--json")
    assert done.status == 0, done.err
    answer = done.answer
    assert answer["device"] == "cpu"
    assert answer["engine"] == "trace"
    assert answer["within_tolerance"]
    assert answer["memory"]["measured"]["peak_allocated_bytes"] == answer["memory"]["peak_allocated_bytes"]
    assert answer["memory"]["measured"]["moments"] == answer["memory"]["moments"]
    assert answer["method"]["measured"]["num_trainable_params"] == answer["method"]["num_trainable_params"]
    assert "a run on the CPU" in answer["notes"][0]
    record = Path(answer["record"])
    assert record.parent == Path(os.environ["XDG_DATA_HOME"]) / "peftplan" / "profiles"
    assert read_record(record.read_bytes(), "x").measured.step_s == answer["measured"]["measured"]["step_s"]


@needs_libraries
@pytest.mark.skipif(sys.platform == "win32", reason="signals to a process group")
def test_an_interrupt_leaves_nothing(tmp_path):
    """Ctrl-C while the child loads its libraries ends both quietly, and no record is written."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "peftplan", "profile", "--device", "cpu", "--out", str(out)]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    for _ in range(400):
        time.sleep(0.05)
        if out.is_dir():
            break
    time.sleep(0.5)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert err == b""
    assert list(out.iterdir()) == []


def test_a_dry_run_carries_nothing_out(run, tmp_path):
    """Every run of a grid is shown with its prediction; one that cannot be planned keeps none back."""
    grid = tmp_path / "g.yaml"
    grid.write_text("- {model: gpt2, rank: 4}\n- {model: no-such-model}\n- {model: gpt2, rank: 8}\n")
    done = run("profile", "--grid", str(grid), "--dry-run", "--json")
    assert done.status == 0
    first, unknown, last = done.answer["rows"]
    assert first["predicted_allocated_bytes"] < last["predicted_allocated_bytes"]
    assert first["fits"] == "yes"
    assert "no-such-model" in unknown["fits"]


def test_the_campaign_can_be_carried_out(run):
    """The shipped grid has at least 40 runs, each is planned and predicted, some end beyond the card."""
    done = run("profile", "--grid", str(ROOT / "profiles" / "campaign.yaml"), "--dry-run", "--json")
    rows = done.answer["rows"]
    assert len(rows) >= 40
    assert all(row["predicted_allocated_bytes"] for row in rows)
    assert len({row["run"] for row in rows}) == len(rows)
    assert any(row["fits"].startswith("no") for row in rows)


# ---- calibration


def record(folder, rank=8, **figures):
    """A record of a run on an A100 80GB."""
    run = {
        "schema_version": 1,
        "kind": "profile",
        "source": "peftplan profile",
        "date": "2026-11-22",
        "request": Request(model="gpt2", rank=rank, gpu="a100-80").model_dump(),
        "measured": figures,
        "hardware": {"gpu": "NVIDIA A100-SXM4-80GB"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{rank}.json").write_text(json.dumps(run))


@pytest.fixture
def plain(run):
    """The estimate without a calibration."""
    return run("estimate", "gpt2", "--gpu", "a100-80", "--json").answer


def test_own_records_refine_own_answers(run, plain, tmp_path):
    """Context and reserved ratio are medians of the records; answers for that card use them and say so."""
    reserved = run("estimate", "gpt2", "--rank", "8", "--json").answer["memory"]["peak_reserved_bytes"]
    for rank, context in ((8, 300 * 2**20), (9, 310 * 2**20), (10, 900 * 2**20)):
        record(tmp_path / "own", rank, context_bytes=context)
    record(tmp_path / "own", 8, context_bytes=300 * 2**20, reserved_bytes=2 * reserved)
    (tmp_path / "own" / "broken.json").write_text("{")
    done = run("calibrate", "--from", str(tmp_path / "own"), "--json")
    assert done.status == 0, done.err
    (found,) = done.answer["gpus"].items()
    assert found[0] == "a100-80"
    assert found[1] == {
        "num_runs": 3,
        "context_bytes": 310 * 2**20,
        "reserved_ratio": 2.0,
        "power_w": None,
        "step_time_ratios": {},
    }
    answer = run("estimate", "gpt2", "--gpu", "a100-80", "--json").answer
    memory, before = answer["memory"], plain["memory"]
    assert memory["peak_allocated_bytes"] == before["peak_allocated_bytes"]
    assert memory["peak_reserved_bytes"] == 2 * before["peak_reserved_bytes"]
    outside = before["device_bytes"] - before["peak_reserved_bytes"]
    assert memory["device_bytes"] == memory["peak_reserved_bytes"] + 310 * 2**20
    assert answer["gpu"]["headroom_bytes"] == plain["gpu"]["headroom_bytes"] + outside - 310 * 2**20
    assert "calibrated by 3 runs of this machine" in answer["notes"][-1]
    assert run("calibrate", "--show", "--json").answer == done.answer


def test_other_cards_are_left_alone(run, tmp_path):
    """A calibration is for the card that it was made on, and for no answer without a card."""
    before = [run("estimate", "gpt2", *gpu, "--json").out for gpu in ((), ("--gpu", "h100"))]
    record(tmp_path / "own", context_bytes=2**30)
    run("calibrate", "--from", str(tmp_path / "own"))
    assert [run("estimate", "gpt2", *gpu, "--json").out for gpu in ((), ("--gpu", "h100"))] == before


def test_a_calibration_is_removable(run, plain, tmp_path):
    """`--remove` takes it away, and estimates are what they were."""
    record(tmp_path / "own", context_bytes=2**30)
    run("calibrate", "--from", str(tmp_path / "own"))
    assert run("calibrate", "--remove", "--json").answer == {"removed": True}
    assert run("estimate", "gpt2", "--gpu", "a100-80", "--json").answer == plain
    assert run("calibrate", "--remove", "--json").answer == {"removed": False}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 9, "date": "", "source": "", "gpus": {}}'])
def test_a_corrupt_calibration_is_passed_over(run, plain, tmp_path, text):
    """A file that is no calibration is named in one line, and the answer is the general one."""
    path = tmp_path / "config" / "peftplan" / "calibration.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    done = run("estimate", "gpt2", "--gpu", "a100-80", "--json")
    assert done.answer == plain
    assert done.err.count("\n") == 1
    assert done.err.startswith(f"warning: {path} is no calibration")
