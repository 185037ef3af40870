"""`peftplan fit`: keys, exit statuses, and what is refused."""

from __future__ import annotations

import csv
import json

import pytest

from peftplan.answers import FitReport

FITS = ("fit", "gpt2", "--gpu", "t4")
UNFIT = ("fit", "gpt2", "--method", "full", "--gpu", "t4", "-b", "64")


def test_keys_of_a_fit(run):
    """The JSON has the keys of the interface; the estimate in it is that of `estimate`."""
    done = run(*FITS, "--json")
    assert done.status == 0
    answer = done.answer
    assert {"fits", "request", "estimate", "changes", "axes", "front", "sets", "notes"} <= set(answer)
    assert answer["fits"] is True
    assert answer["changes"] == []
    estimate = run("estimate", *FITS[1:], "--json").answer
    assert answer["estimate"]["memory"] == estimate["memory"]
    assert answer["request"] == estimate["request"]
    assert [limit["axis"] for limit in answer["axes"]] == ["micro_batch", "seq_len"]


def test_a_run_that_does_not_fit_is_status_1_with_changes(run):
    """Exit status 1; every change has its saving, time and dollars, null where they are not known."""
    done = run(*UNFIT, "--json")
    assert done.status == 1
    answer = done.answer
    assert answer["fits"] is False
    assert answer["changes"]
    for change in answer["changes"]:
        assert {"change", "saves_bytes", "adds_s", "adds_usd", "risk"} <= set(change)
        assert change["saves_bytes"] > 0
    assert answer["changes"] == answer["sets"][0]["changes"]


def test_what_the_changes_say_can_be_typed(run):
    """The options of a set, behind the command line that was asked, make it fit."""
    done = run(*UNFIT, "--json")
    words = " ".join(change["change"] for change in done.answer["changes"]).split()
    assert run(*UNFIT, *words, "--json").status == 0


@pytest.mark.parametrize(
    "words", [FITS, UNFIT, (*FITS, "--axis", "seq_len,micro_batch"), (*FITS, "--axis", "model")]
)
def test_the_json_is_what_its_schema_says(run, words):
    """An answer read back is the same answer: every field is there, of its type, and no other."""
    out = run(*words, "--json").out
    assert json.loads(FitReport.model_validate_json(out).model_dump_json()) == json.loads(out)


@pytest.mark.parametrize("axis", ["micro_batch", "micro-batch", "Seq_Len", "rank", "method"])
def test_one_axis(run, axis):
    """An axis by any spelling is the only one answered."""
    answer = run(*FITS, "--axis", axis, "--json").answer
    assert {limit["axis"] for limit in answer["axes"]} == {axis.lower().replace("-", "_")}
    assert answer["front"] is None


def test_two_axes_have_a_front(run):
    """Of two axes, points in the order in which they were given."""
    front = run(*FITS, "--axis", "seq_len,micro_batch", "--json").answer["front"]
    assert front["axes"] == ["seq_len", "micro_batch"]
    assert all(list(point["values"]) == front["axes"] for point in front["points"])
    lengths = [point["values"]["seq_len"] for point in front["points"]]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (("fit", "gpt2"), "--gpu", 2),
        (("fit", "gpt2", "--gpu", "t4", "--axis", "depth"), "micro_batch, seq_len, rank, model, method", 2),
        (("fit", "gpt2", "--gpu", "t4", "--axis", ","), "give some of", 2),
        (("fit", "gpt2", "--gpu", "t4", "--axis", "rank", "--method", "full"), "no adapters", 2),
        (("fit", "gpt2", "--gpu", "t4", "--engine", "trace"), "trace", 2),
        (("fit", "gpt2", "--gpu", "nonesuch-9"), "not in the catalogue", 4),
        (("fit", "no-such-model", "--gpu", "t4"), "no catalogue name", 4),
        (("fit", "gpt2", "--gpu", "t4", "-b", "0"), "whole number", 2),
    ],
)
def test_what_is_refused_is_said_in_one_line(run, words, said, status):
    """One line on stderr: what was given, what is allowed; nothing on stdout."""
    done = run(*words)
    assert done.status == status
    assert done.out == ""
    assert said in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("form", ["--plain", "--markdown", ""])
@pytest.mark.parametrize("columns", [60, 80, 140])
def test_the_screen_says_what_fits_and_what_to_change(run, form, columns):
    """In every form and width: the verdict, the limits and the changes with their risk; no line is too long."""
    done = run(*UNFIT, *filter(None, [form]), columns=columns)
    text = " ".join(done.out.split())
    assert "does not fit" in text
    assert "The most that fits, each alone" in text
    assert "risk" in text
    if form != "--markdown":
        assert all(len(line) <= columns for line in done.out.splitlines())


def test_csv_has_a_row_for_every_axis_and_change(run):
    """The rows are told apart by their kind, and hold what the JSON holds."""
    answer = run(*UNFIT, "--json").answer
    rows = list(csv.DictReader(run(*UNFIT, "--csv").out.splitlines()))
    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("request", "axis", "change")}
    assert len(by_kind["request"]) == 1
    assert [int(row["value"]) for row in by_kind["axis"]] == [limit["value"] for limit in answer["axes"]]
    assert [row["name"] for row in by_kind["change"]] == [change["change"] for change in answer["changes"]]
