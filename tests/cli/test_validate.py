"""`peftplan validate`: what it answers, in which form, with which exit status, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import re
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from peftplan.catalog import profiles

PUBLISHED = Path(__file__).parents[2] / "profiles" / "published"
HEADER, *ROWS = (PUBLISHED / "memory.csv").read_text(encoding="utf-8").splitlines()
USED = 379  # data row of a stock run; the one after it is another
KEYS = {
    "row",
    "source",
    "used",
    "reason",
    "metric",
    "engine",
    "predicted",
    "measured",
    "error_frac",
    "inside_interval",
}
SUMMARY = {
    "used", "excluded", "median_abs_error", "p90_abs_error", "worst_abs_error", "false_fits", "interval_coverage",
}  # fmt: skip


@pytest.fixture
def some(tmp_path):
    """A file of a stock row, a row of two GPUs, and a stock row whose figure is twice too large."""
    wrong = next(csv.reader([ROWS[USED]]))
    names = next(csv.reader([HEADER]))
    for name in ("memory_gb", "memory_gib"):
        wrong[names.index(name)] = str(2 * float(wrong[names.index(name)]))
    line = StringIO()
    csv.writer(line, lineterminator="").writerow(wrong)
    two = next(row for row in ROWS if ",2,full," in row)
    path = tmp_path / "some.csv"
    path.write_text("\n".join([HEADER, ROWS[USED - 1], two, line.getvalue()]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def stock(tmp_path):
    """A file of one stock row."""
    path = tmp_path / "stock.csv"
    path.write_text(f"{HEADER}\n{ROWS[USED - 1]}\n", encoding="utf-8")
    return path


def test_json_is_as_the_interface_says(run, some):
    """Summary and rows have their keys; every data row appears once, an excluded one without figures."""
    done = run("validate", "--data", str(some), "--json")
    answer = done.answer
    assert answer["schema_version"] == 1
    assert set(answer["summary"]) >= SUMMARY
    assert [row["row"] for row in answer["rows"]] == [1, 2, 3]
    assert all(set(row) >= KEYS for row in answer["rows"])
    first, second, third = answer["rows"]
    assert (first["used"], second["used"], third["used"]) == (True, False, True)
    assert first["error_frac"] == pytest.approx(first["predicted"] / first["measured"] - 1)
    assert third["error_frac"] == pytest.approx(-0.5, abs=0.01)
    assert (first["inside_interval"], third["inside_interval"]) == (True, False)
    assert "2 GPUs" in second["reason"]
    assert [second[name] for name in ("predicted", "measured", "error_frac", "inside_interval")] == [None] * 4
    assert (answer["summary"]["used"], answer["summary"]["excluded"]) == (2, 1)
    assert done.err == ""


def test_the_exit_status_says_whether_errors_are_within_tolerance(run, some, stock):
    """0 within, 1 outside."""
    assert run("validate", "--data", str(stock)).status == 0
    assert run("validate", "--data", str(some)).status == 1


@pytest.mark.parametrize("form", ["--plain", "--markdown", None])
def test_the_screen_names_errors_and_reasons(run, some, form):
    """The verdict, the errors by source, the largest of them, and why rows were not compared."""
    words = ("validate", "--data", str(some), *((form,) if form else ()))
    text = " ".join(run(*words, columns=160).out.split()).replace("\\_", "_")
    assert "2 of 3 measurements compared" in text
    assert "outside the tolerance" in text
    assert "fms_acceleration" in text
    assert "2 GPUs" in text


def test_csv_has_one_line_a_row(run, some):
    """As CSV, each data row is a line, its columns named as in the JSON."""
    rows = list(csv.DictReader(StringIO(run("validate", "--data", str(some), "--csv").out)))
    assert [row["used"] for row in rows] == ["True", "False", "True"]
    assert set(rows[0]) >= KEYS


def test_out_of_memory_outcomes_are_one_sided(run):
    """A run that ran out of memory has a prediction, and counts as false only if it is said to fit."""
    answer = run("validate", "--data", str(PUBLISHED / "oom_outcomes.csv"), "--json").answer
    assert len(answer["rows"]) == 14
    used = [row for row in answer["rows"] if row["used"]]
    assert used
    assert all(row["predicted"] > row["measured"] for row in used)
    assert answer["summary"]["false_fits"] == 0
    assert answer["summary"]["median_abs_error"] is None


def test_a_run_said_to_fit_that_did_not_is_counted(run, tmp_path):
    """A small run that is said to have run out of memory makes a false fit, and the status 1."""
    header, *rows = (PUBLISHED / "oom_outcomes.csv").read_text(encoding="utf-8").splitlines()
    small = next(row for row in rows if row.startswith("llamafactory_wiki")).replace(",100000,", ",512,")
    path = tmp_path / "oom.csv"
    path.write_text(f"{header}\n{small}\n", encoding="utf-8")
    done = run("validate", "--data", str(path), "--json")
    assert done.status == 1
    assert done.answer["summary"]["false_fits"] == 1


def test_throughput_is_scored_row_by_row(run):
    """Every row of a throughput table appears: with a predicted speed, or with the reason why it has none."""
    done = run("validate", "--data", str(PUBLISHED / "throughput.csv"), "--json")
    rows = done.answer["rows"]
    assert [row["row"] for row in rows] == list(range(1, 277))
    assert {row["metric"] for row in rows} == {"tokens_per_s"}
    used = [row for row in rows if row["used"]]
    assert len(used) >= 45
    for row in used:
        assert row["error_frac"] == pytest.approx(row["predicted"] / row["measured"] - 1)
        assert row["inside_interval"] is (row["low"] <= row["measured"] <= row["high"])
    assert all(row["reason"] and row["predicted"] is None for row in rows if not row["used"])
    assert any("A6000" in row["reason"] for row in rows)


def test_speeds_are_shown_in_their_unit(run):
    """The screen's largest errors of a table of speeds are in tokens per second."""
    done = run("validate", "--data", str(PUBLISHED / "throughput.csv"), "--markdown")
    assert " tokens/s |" in done.out


def test_a_plot_is_drawn(run, some, tmp_path):
    """An SVG is well-formed and says in words what it shows; a page holds it and fetches nothing."""
    svg, page = tmp_path / "a.svg", tmp_path / "a.html"
    run("validate", "--data", str(some), "--plot", str(svg), "--json")
    run("validate", "--data", str(some), "--plot", str(page), "--json")
    root = ET.fromstring(svg.read_text(encoding="utf-8"))  # noqa: S314
    assert root.tag.endswith("svg")
    assert len(root.findall(".//{*}circle/{*}title")) == 4  # two runs, in both panels
    assert not re.search(r'(?:src|href)="', page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "no.csv"), "does not exist"),
        (("--data", "."), "is a folder"),
        (("--engine", "guess"), "closed or trace"),
        (("--plot", "a.png"), ".svg or .html"),
        (("--plot", "/no/such/folder/a.svg"), "--plot"),
        (("--json", "--csv"), "exclude each other"),
    ],
)
def test_bad_usage_is_refused_in_one_line(run, words, said):
    """What was given and what is allowed, on stderr; nothing on stdout."""
    done = run("validate", *words)
    assert done.status in (2, 4)
    assert said in done.err
    assert done.err.count("\n") == 1
    assert done.out == ""


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\x01\x02", b"\xff\xfe", b"a,b\n1,2\n", HEADER.encode(), (HEADER + "\n1,2\n").encode(), b'"'],
)
def test_a_malformed_file_is_refused_in_one_line(run, tmp_path, content):
    """Binary, empty, unknown columns, too few cells: one line, no traceback."""
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    done = run("validate", "--data", str(path))
    assert done.status == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_nan_is_refused(run, tmp_path):
    """A figure that is no number is a mistake of the file, whose row and column are named."""
    cells = next(csv.reader([ROWS[0]]))
    cells[next(csv.reader([HEADER])).index("memory_gib")] = "nan"
    line = StringIO()
    csv.writer(line).writerow(cells)
    path = tmp_path / "x.csv"
    path.write_text(f"{HEADER}\n{line.getvalue()}", encoding="utf-8", newline="")
    done = run("validate", "--data", str(path))
    assert done.status == 2
    assert "row 1: memory_gib is 'nan'" in done.err


@pytest.mark.skipif(not hasattr(os, "truncate"), reason="makes a sparse file")
def test_a_huge_file_is_refused_unread(run, tmp_path):
    """Ten gigabytes are refused by their size."""
    path = tmp_path / "x.csv"
    path.touch()
    os.truncate(path, 10 * 10**9)
    done = run("validate", "--data", str(path))
    assert done.status == 2
    assert "at most" in done.err


def test_records_are_scored_like_rows(run, stock, tmp_path):
    """A record as JSON gives one row for each figure that it holds."""
    from datetime import date

    from peftplan import Request
    from peftplan.measured import Figures, Hardware, MeasuredRun

    record = MeasuredRun(
        kind="profile",
        source="here",
        date=date(2026, 11, 22),
        request=Request(model="gpt2", method="full", seq_len=256),
        measured=Figures(allocated_bytes=10**9, reserved_bytes=2 * 10**9, step_s=0.1),
        hardware=Hardware(gpu="Tesla T4"),
    )
    path = tmp_path / "record.json"
    path.write_text(record.model_dump_json(), encoding="utf-8")
    answer = run("validate", "--data", str(path), "--json").answer
    assert [(row["metric"], row["used"]) for row in answer["rows"]] == [
        ("allocated", True),
        ("reserved", True),
        ("step_s", False),
    ]


def test_all_that_is_installed_is_scored_by_default(run, monkeypatch, tmp_path):
    """Without --data: the published tables and the records at hand; without any, a clear message."""
    monkeypatch.setattr(profiles, "user_folder", lambda: tmp_path)
    answer = run("validate", "--json").answer
    assert {row["file"] for row in answer["rows"]} >= {"memory.csv", "oom_outcomes.csv", "throughput.csv"}
    monkeypatch.setattr(profiles, "shipped_folder", lambda: tmp_path)
    done = run("validate")
    assert done.status == 2
    assert "no measurements" in done.err


def test_the_schema_of_the_answer_fits_it(run, stock):
    """What `--json-schema` names is what `--json` holds."""
    schema = json.loads(run("validate", "--json-schema").out)
    assert set(run("validate", "--data", str(stock), "--json").answer) == set(schema["properties"])
