"""`peftplan trace`, and the trace as an engine of the other commands."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from peftplan.measure.trace.process import Worker
from peftplan.request import Request

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
TRACES = pytest.mark.skipif(not all(map(find_spec, LIBRARIES)), reason="the extra `trace` is not installed")
GOLDEN = Path(__file__).parents[1] / "golden" / "trace.txt"
# A small model of a family that the closed form does not know.
OLMO2 = {
    "model_type": "olmo2",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "vocab_size": 500,
    "max_position_embeddings": 128,
}
LLAMA = {**OLMO2, "model_type": "llama", "hidden_act": "silu"}


@pytest.fixture(scope="module")
def child() -> Iterator[Worker]:
    """One child process for all traces of this file: loading the libraries takes longer than tracing."""
    with Worker() as worker:
        yield worker


@pytest.fixture(autouse=True)
def one_child(child: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run inside this process trace in that child."""
    monkeypatch.setattr("peftplan.engines.new_worker", lambda: nullcontext(child))


def config(folder: Path, fields: dict[str, Any]) -> str:
    path = folder / "some-model.json"
    path.write_text(json.dumps(fields))
    return str(path)


# ---- answers


@TRACES
def test_a_family_that_estimates_refuse_is_traced(run, tmp_path):
    """The installed transformers knows more families than the closed form; the keys are an estimate's."""
    name = config(tmp_path, OLMO2)
    refused = run("estimate", name)
    assert refused.status == 2
    assert "olmo2" in refused.err
    done = run("trace", name, "--json")
    assert done.status == 0
    assert done.err == ""
    answer = done.answer
    assert set(answer["request"]) == set(Request.model_fields)
    assert answer["engine"] == answer["request"]["engine"] == "trace"
    assert answer["model"]["architecture"] == "olmo2"
    memory = answer["memory"]
    assert memory["breakdown"]["bytes"] == memory["peak_allocated_bytes"] == max(memory["moments"].values())
    assert memory["load"] is None
    assert {"phases", "largest", "timeline", "tree", "totals", "libraries", "seconds", "mode"} <= set(answer)
    assert answer["request"]["seq_len"] == 128


@TRACES
def test_fast_is_the_whole_trace(run, tmp_path):
    """Blocks that are alike need not all be traced: every figure is the same, the allocator's too."""
    name = config(tmp_path, OLMO2)
    whole, fast = (run("trace", name, "--method", "qlora", "--json", *more).answer for more in ((), ("--fast",)))
    assert "5 and 6 of 12 blocks were traced" in fast["notes"][-2]
    for part in ("memory", "totals", "phases", "largest", "tree", "model", "method"):
        assert fast[part] == whole[part], part


@TRACES
def test_files_are_written_beside_the_answer(run, tmp_path):
    """A snapshot that unpickles to plain values, a chart, and a screen."""
    snapshot, chart = tmp_path / "run.pickle", tmp_path / "run.html"
    done = run(
        "trace", config(tmp_path, LLAMA), "--layers", "2", "--snapshot", str(snapshot), "--chart", str(chart)
    )
    assert done.status == 0
    assert "The 10 largest tensors at the peak" in done.out
    assert set(pickle.loads(snapshot.read_bytes())) >= {"segments", "device_traces"}  # noqa: S301 - our own
    assert chart.read_text().lower().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.html", "run.pickle", "some-model.json"]


@TRACES
def test_a_peft_config_is_traced(run, tmp_path):
    """peft's own file says what is put on the model; what it says of a saved adapter does not matter."""
    adapter = tmp_path / "adapter_config.json"
    fields = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "use_dora": True, "inference_mode": True}
    adapter.write_text(json.dumps({**fields, "base_model_name_or_path": "somewhere", "peft_version": "0.21.0"}))
    name = config(tmp_path, LLAMA)
    answer = run("trace", name, "--layers", "2", "--peft-config", str(tmp_path), "--json").answer
    # a rank of 4 beside 64 x 64, and DoRA's 64 magnitudes, in each of two blocks
    assert answer["method"]["num_trainable_params"] == 2 * (2 * 4 * 64 + 64)
    assert answer["request"]["rank"] == 4


@TRACES
def test_engines_are_compared_to_the_byte(run, tmp_path):
    """The same run by both: columns named by engine, equal parts, and nothing to explain."""
    name = config(tmp_path, LLAMA)
    answer = run("compare", name, "--engines", "closed,trace", "--methods", "qlora", "--json").answer
    assert [column["request"]["engine"] for column in answer["columns"]] == ["closed", "trace"]
    assert all(a == b for a, b in (term["bytes"] for term in answer["terms"]))
    assert answer["differences"] == []


@TRACES
def test_methods_are_compared_by_the_trace(run, tmp_path):
    """Several traces, one child, one column each."""
    done = run("compare", config(tmp_path, OLMO2), "--engine", "trace", "--methods", "full,lora", "--json")
    assert [column["method"]["kind"] for column in done.answer["columns"]] == ["full", "lora"]


@TRACES
def test_the_screen_is_the_one_on_file(run, request):
    """What people see, apart from the installed versions and the interval, which follows the measured runs."""
    done = run("trace", "gpt2", "--layers", "2", "--seq-len", "256", "--top", "6", "--gpu", "rtx4090", "--plain")
    lines = [line.rstrip() for line in done.out.partition("\nTraced with ")[0].splitlines()]
    shown = re.sub(r"(?<= within ).*", "...", "\n".join(lines) + "\n")
    if request.config.getoption("--regenerate-golden"):
        GOLDEN.write_text(shown, encoding="utf-8")
    assert shown == GOLDEN.read_text(encoding="utf-8")


@TRACES
def test_a_check_answers_by_its_status(run, tmp_path):
    """0 where it fits, as an estimate does."""
    name = config(tmp_path, LLAMA)
    assert run("trace", name, "--layers", "1", "--gpu", "rtx4090", "--check", "--csv").status == 0


def test_the_schema_describes_a_trace(run):
    """`--json-schema` needs no model and no library, and knows what only a trace has."""
    schema = json.loads(run("trace", "--json-schema").out)
    assert {"memory", "phases", "timeline", "totals", "libraries"} <= set(schema["properties"])
    assert schema["properties"]["request"] == {"$ref": "#/$defs/Request"}


# ---- refusals

REFUSED = {
    "trace nope": (4, "nope is no catalogue name, file or folder"),
    "trace gpt2 --micro-batch 0": (2, "--micro-batch 0 is not allowed"),
    "trace gpt2 --method full --quant nf4": (2, "--quant nf4"),
    "trace gpt2 --method a/b": (2, "--method 'a/b' is unknown"),
    "trace gpt2 --top 0": (2, "--top 0 is not allowed; give a whole number from 1"),
    "trace gpt2 --top many": (2, "--top many"),
    "trace gpt2 --layers 1.5": (2, "--layers 1.5"),
    "trace gpt2 --layers ٣": (2, "--layers"),
    "trace gpt2 --check": (2, "--gpu"),
    "trace gpt2 --chart run.pdf": (2, "it must be .html, .svg or .png"),
    "trace gpt2 --chart /nowhere/run.svg": (2, "--chart"),
    "trace gpt2 --snapshot /nowhere/run.pickle": (2, "--snapshot"),
    "trace gpt2 --snapshot .": (2, "is a folder"),
    "trace gpt2 --peft-config /nowhere.json": (4, "--peft-config"),
    "trace gpt2 --json --csv": (2, "exclude each other"),
    "compare gpt2 --engines closed,nope": (2, "give some of closed, trace"),
    "compare gpt2 --engines ,": (2, "give some of closed, trace"),
    "compare gpt2 --engines closed,trace --engine trace": (2, "exclude each other"),
    "compare a.json b.json --engines closed": (2, "--engines"),
    "estimate gpt2 --engine nope": (2, "give one of closed, trace"),
}


@pytest.mark.parametrize("line", REFUSED)
def test_refused_before_a_process_is_started(run, line, monkeypatch):
    """A wrong word is answered at once, in one line."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a child was started"))
    status, words = REFUSED[line]
    done = run(*line.split())
    assert (done.status, done.out) == (status, "")
    assert done.err.count("\n") == 1
    assert words in done.err


LIBRARIES_REFUSE = {
    "nope": ({"model_type": "nope"}, (), "has no model_type 'nope'"),
    "negative": ({**OLMO2, "hidden_size": -8}, (), "rejects this olmo2 config"),
    "closed words": ({**LLAMA, "hidden_size": -8}, (), "hidden_size is -8; it must be"),
    "targets": (LLAMA, ("--targets", "nope"), "--targets nope names no module of llama"),
    "strange targets": (OLMO2, ("--targets", "nope"), "peft"),
    "method": (LLAMA, ("--method", "nope"), "has no method 'nope'"),
}


@TRACES
@pytest.mark.parametrize("name", LIBRARIES_REFUSE)
def test_what_the_libraries_refuse_is_bad_input(run, tmp_path, name):
    """Their verdict in one line, with the closed form's words where it has some."""
    fields, more, words = LIBRARIES_REFUSE[name]
    done = run("trace", config(tmp_path, fields), *more)
    assert done.status == 2, done
    assert done.err.count("\n") == 1
    assert words in done.err


def test_without_the_extra_it_says_how_to_get_it(run, monkeypatch):
    """Exit status 5, and the extra's name."""
    from peftplan.measure import process

    monkeypatch.setattr(process, "_is_installed", lambda name: False)
    done = run("trace", "gpt2")
    assert (done.status, done.out) == (5, "")
    assert "pip install 'peftplan[trace]'" in done.err
    assert done.err.count("\n") == 1


@TRACES
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_the_child_and_leaves_nothing(tmp_path):
    """Exit status 130, no process and no file behind, nothing on stdout."""
    files = tmp_path / "scratch"
    files.mkdir()
    target = tmp_path / "run.svg"
    running = subprocess.Popen(
        [sys.executable, "-m", "peftplan", "trace", "llama-3-8b", "--chart", str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(files)},
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    children = wait_for_children(running.pid)
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert (out, err) == (b"", b"")
    assert list(files.iterdir()) == []
    assert not target.exists()
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def wait_for_children(pid: int) -> list[int]:
    """The processes that a process has started, once it has."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    if not listed.exists():
        pytest.skip("no /proc that lists children")
    for _ in range(600):
        children = [int(number) for number in listed.read_text().split()]
        if children:
            time.sleep(0.5)
            return children
        time.sleep(0.05)
    raise AssertionError("no child was started")
