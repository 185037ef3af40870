"""`peftplan sweep`: grids as they are typed, the forms of the answer, its files and charts, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from xml.etree import ElementTree as ET

import pytest

from peftplan.cli.grid import axes_from
from peftplan.render.sweep import SHOWN_AT_MOST

GRID = ("sweep", "gpt2", "--seq-len", "64", "--over", "rank=4,8", "--over", "method=lora,qlora")
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals")


# ---- what is typed


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("rank=8,16,32", [8, 16, 32]),
        ("rank=4..256", [4, 8, 16, 32, 64, 128, 256]),
        ("rank=3..20", [3, 6, 12]),
        ("seq_len=512:2048:512", [512, 1024, 1536, 2048]),
        ("seq-len=1:3", [1, 2, 3]),
        ("--seq-len=1:6:2,100", [1, 3, 5, 100]),
        ("dropout=0,0.1", [0.0, 0.1]),
        ("checkpointing=on,off", [True, False]),
        ("precision=default,bf16", [None, "bf16"]),
        ("quant=NF4", ["nf4"]),
        ("targets=q_proj+v_proj,all-linear", [["q_proj", "v_proj"], "all-linear"]),
        ("tokens=1M,2M", [10**6, 2 * 10**6]),
        ("model=gpt2,llama-7b", ["gpt2", "llama-7b"]),
    ],
)
def test_values_are_read_as_they_are_documented(text, values):
    """Lists, ranges with a step, doublings, switches, names joined by a plus, and fields left open."""
    ((name, found),) = axes_from([text]).items()
    assert name == text.partition("=")[0].lstrip("-").replace("-", "_")
    assert found == values


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--over FIELD=VALUES"),
        (("--over", "rank"), "give a field and values"),
        (("--over", "rnk=1"), "did you mean rank?"),
        (("--over", "engine=closed"), "is no field of a request that a sweep varies"),
        (("--over", "rank="), "has no values"),
        (("--over", "rank=0"), "from 1 to 1,000,000"),
        (("--over", "rank=8,x"), "x is not allowed"),
        (("--over", "rank=8..4"), "from the smaller value to the larger"),
        (("--over", "seq_len=1:9:0"), "is no step"),
        (("--over", "seq_len=1:99999999"), "more than 100,000 values"),
        (("--over", "rank=1:1000", "--over", "seq_len=1:1000"), "is the most"),
        (("--over", "rank=1", "--over", "rank=2"), "given twice"),
        (("--rank", "8", "--over", "rank=1"), "leave one of the two out"),
        (("--over", "attention=flsh"), "did you mean flash?"),
        (("--over", "price=-1"), "price"),
        (("--over", "price=nan"), "price"),
        (("--over", "rank=1", "--out", "a.xlsx"), "it must be .parquet, .csv, .json or .md"),
        (("--over", "rank=1", "--chart", "a.gif"), "it must be .svg, .html or .png"),
        (("--over", "rank=1", "--out", "no-such-folder/a.csv"), "which is no folder"),
        (("--over", "rank=1", "--json", "--csv"), "exclude each other"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_in_one_line(run, words, said):
    """Exit status 2, nothing on stdout, one line that says what is wrong and what is allowed."""
    done = run("sweep", "gpt2", *words)
    assert (done.status, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_a_sweep_needs_a_model(run):
    """Without MODEL the models stand in --over; without both there is nothing to answer."""
    done = run("sweep", "--over", "rank=1")
    assert done.status == 2
    assert "--over model=" in done.err
    assert len(run("sweep", "--over", "model=gpt2,t5-small", "--seq-len", "8", "--json").answer["rows"]) == 2


def test_an_unknown_model_is_not_found(run):
    """Every point would be refused for one reason: exit status 4, as elsewhere."""
    done = run("sweep", "no-such-model", "--over", "rank=1,2")
    assert (done.status, done.out) == (4, "")
    assert "no-such-model" in done.err


# ---- what is answered


def test_json_has_a_row_for_every_point(run):
    """Rows carry the varied fields, and figures equal to those of `estimate --json`."""
    rows = run(*GRID, "--gpu", "a100-80gb", "--breakdown", "--json").answer["rows"]
    assert [(row["rank"], row["point"]["method"]) for row in rows] == [
        (4, "lora"), (4, "qlora"), (8, "lora"), (8, "qlora"),
    ]  # fmt: skip
    words = ("--seq-len", "64", "--rank", "8", "--method", "qlora", "--gpu", "a100-80gb", "--json")
    asked = run("estimate", "gpt2", *words).answer
    assert {part: rows[-1][part] for part in ("memory", "method", "gpu", "time", "cost")} == {
        part: asked[part] for part in ("memory", "method", "gpu", "time", "cost")
    }


def test_csv_has_the_columns_of_the_json(run):
    """One line a point: the varied fields, then memory.*, method.*, and why a point is refused."""
    done = run("sweep", "gpt2", "--seq-len", "64", "--over", "kbit_prepare=on,off", "--csv")
    refused, answered = csv.DictReader(done.out.splitlines())
    assert (refused["memory.peak_allocated_bytes"], refused["method.kind"]) == ("", "")
    assert refused["error"].startswith("--kbit-prepare")
    assert int(answered["memory.peak_allocated_bytes"]) > 0
    assert (answered["method.kind"], answered["error"]) == ("lora", "")


@pytest.mark.parametrize("form", [(), ("--plain",), ("--markdown",)])
def test_tables_name_fields_and_figures(run, form):
    """A rank sweep shows trainable parameters, adapter file and memory for every rank."""
    out = run("sweep", "gpt2", "--seq-len", "64", "--over", "rank=4..16", *form).out
    for word in ("rank", "trainable", "adapter", "allocated", "device", "589.8 k", "2.25 MiB", "9.00 MiB"):
        assert word in out


@pytest.mark.parametrize("columns", [60, 80, 140])
@pytest.mark.parametrize("form", [(), ("--plain",)])
def test_tables_keep_to_the_width_and_name_every_row(run, columns, form):
    """A table too wide is cut into several, each with all varied fields in front."""
    out = run(*GRID, "--gpu", "a100-80gb", *form, columns=columns).out
    assert [line for line in out.splitlines() if len(line) > columns] == []
    heads = [line.split()[:2] for line in out.splitlines() if "rank" in line.split()[:1] and "method" in line]
    assert ["rank", "method"] in heads
    assert all(head == ["rank", "method"] for head in heads if "4" not in head[1])


def test_a_long_table_says_how_many_points_it_leaves_out(run):
    """The screen stops after a number of lines; --plain has every point."""
    words = ("sweep", "gpt2", "--seq-len", "8", "--over", f"grad_accum=1:{SHOWN_AT_MOST + 3}")
    done = run(*words)
    assert "and 3 more points" in done.out
    assert "more points" not in run(*words, "--plain").out


def test_refused_points_are_told_once(run):
    """The screen has each reason with its first point and how many more there are."""
    out = run("sweep", "gpt2", "--seq-len", "8", "--over", "rank=1,2,3", "--over", "kbit_prepare=on,off").out
    assert out.count("prepares") == 1
    assert "rank 1, kbit_prepare on and 2 more" in " ".join(out.split())


def test_every_block_can_be_asked_for_or_left_out(run):
    """--no-every-block extrapolates a small grid too, and the notes say so."""
    note = "extrapolated from the blocks"
    assert note not in run(*GRID, "--json").out
    assert note in run(*GRID, "--no-every-block", "--json").out


# ---- files


def test_files_hold_every_point(run, tmp_path):
    """--out writes CSV, JSON or Markdown by the name's end, beside what is printed."""
    printed = {form: run(*GRID, form).out for form in ("--csv", "--json", "--markdown")}
    for form, end in (("--csv", "csv"), ("--json", "json"), ("--markdown", "md")):
        path = tmp_path / f"grid.{end}"
        assert run(*GRID, "--out", str(path)).status == 0
        assert path.read_text(encoding="utf-8") == printed[form]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.csv", "grid.json", "grid.md"]


@pytest.mark.parametrize(
    ("option", "name", "module"),
    [("--out", "a.parquet", "pandas"), ("--out", "a.parquet", "pyarrow"), ("--chart", "a.png", "vl_convert")],
)
def test_what_needs_a_library_says_so(run, tmp_path, monkeypatch, option, name, module):
    """Where the library is missing: exit status 5, its name, what needs none, and no file."""

    def found(asked):
        return None if asked == module else object()

    monkeypatch.setattr("peftplan.render.sweep_files.find_spec", found)
    monkeypatch.setattr("peftplan.render.timeline.find_spec", found)
    done = run(*GRID, option, str(tmp_path / name))
    assert (done.status, done.out) == (5, "")
    assert module.replace("_", "-") in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(find_spec("pandas") is None or find_spec("pyarrow") is None, reason="needs pandas and pyarrow")
def test_parquet_holds_the_columns_of_the_csv(run, tmp_path):
    """The same names and values; whole numbers stay whole where a refused point has none."""
    import pandas as pd

    path = tmp_path / "a.parquet"
    words = ("sweep", "gpt2", "--seq-len", "64", "--over", "kbit_prepare=on,off")
    assert run(*words, "--out", str(path)).status == 0
    frame = pd.read_parquet(path)
    header, _, answered = csv.reader(run(*words, "--csv").out.splitlines())
    assert list(frame.columns) == header
    assert str(frame["memory.peak_allocated_bytes"].dtype) == "Int64"
    assert frame["memory.peak_allocated_bytes"][1] == int(answered[header.index("memory.peak_allocated_bytes")])


def test_a_chart_shows_every_line_and_point(run, tmp_path):
    """An SVG that parses: a line for each method, a dot for each point, the axis, and the words."""
    path = tmp_path / "a.svg"
    run("sweep", "gpt2", "--over", "seq_len=64,128,256", "--over", "method=lora,qlora", "--chart", str(path))
    root = ET.parse(path).getroot()  # noqa: S314  # our own
    names = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert (names.count("polyline"), names.count("circle")) == (2, 6)
    text = " ".join(element.text or "" for element in root.iter())
    for word in ("device memory [GiB]", "seq_len", "method lora", "method qlora"):
        assert word in text


def test_a_chart_draws_time_and_cost_where_they_are_known(run, tmp_path):
    """With a card and tokens there are three panels."""
    path = tmp_path / "a.svg"
    words = ("--gpu", "a100-80gb", "--tokens", "1M", "--price", "2", "--chart", str(path))
    run("sweep", "gpt2", "--over", "seq_len=64,128", *words)
    text = path.read_text(encoding="utf-8")
    for title in ("device memory [GiB]", "a step [s]", "the run [US$]"):
        assert f">{title}</text>" in text


def test_a_page_stands_alone(run, tmp_path):
    """The HTML has the chart and every point, names no address, and shows a name as text."""
    config = tmp_path / "<b>.json"
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 100}
    config.write_text(json.dumps({"model_type": "gpt2", **sizes}))
    path = tmp_path / "a.html"
    assert run("sweep", str(config), "--seq-len", "8", "--over", "rank=1,2", "--chart", str(path)).status == 0
    text = path.read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert text.count("<tr>") == 3


@POSIX
def test_an_interrupt_leaves_nothing_behind(tmp_path):
    """Ctrl-C ends a sweep with status 130, no traceback and no file."""
    words = ("sweep", "llama-3-8b", "--over", "seq_len=1:90000", "--out", str(tmp_path / "a.csv"))
    process = subprocess.Popen(
        [sys.executable, "-m", "peftplan", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"")
    assert list(tmp_path.iterdir()) == []
