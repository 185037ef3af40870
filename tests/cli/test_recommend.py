"""`peftplan recommend`: keys, limits as they are typed, and screens."""

from __future__ import annotations

import csv
import json

import pytest

from peftplan.answers import RecommendReport

ASKED = ("recommend", "gpt2", "--method", "lora", "--tokens", "50M")


def test_keys_of_a_recommendation(run):
    """The JSON has the keys of the interface, in the answer and in every row."""
    done = run(*ASKED, "--json")
    assert done.status == 0
    answer = done.answer
    assert {"rows", "notes", "recommended", "unfit", "unpriced"} <= set(answer)
    keys = {"gpu", "num_gpus", "provider", "request", "memory", "time", "cost", "on_front"}
    for row in answer["rows"]:
        assert keys <= set(row)
        assert {"low_s", "high_s"} <= set(row["time"]["interval"])
        assert {"usd_low", "usd_high", "price_date"} <= set(row["cost"])
        assert row["reason"]


@pytest.mark.parametrize("words", [ASKED, ("recommend", "llama-3.1-405b", "--method", "full", "--tokens", "1M")])
def test_the_json_is_what_its_schema_says(run, words):
    """An answer read back is the same answer: every field is there, of its type, and no other."""
    out = run(*words, "--json").out
    assert json.loads(RecommendReport.model_validate_json(out).model_dump_json()) == json.loads(out)


def test_the_screen_names_card_hours_dollars_and_their_ranges(run):
    """What to take, where, for how long and how much, from when the price is, and why."""
    answer = run(*ASKED, "--deadline", "12h", "--json").answer
    row = answer["rows"][answer["recommended"]]
    text = " ".join(run(*ASKED, "--deadline", "12h", columns=140).out.split())
    assert f"Take {row['num_gpus']} x {row['fit']['name']} at {row['provider']}" in text
    assert "Between" in text
    assert row["rented"]["date"] in text
    assert "advised: the cheapest that keeps the deadline" in text
    assert "within 12 h" in text


@pytest.mark.parametrize("form", ["--plain", "--markdown", ""])
@pytest.mark.parametrize("columns", [60, 80, 140])
def test_every_form_and_width(run, form, columns):
    """The front stands in every form; no line is wider than the terminal."""
    done = run(*ASKED, *filter(None, [form]), columns=columns)
    assert done.status == 0
    assert "The front: nothing is both faster and cheaper" in " ".join(done.out.split())
    if form != "--markdown":
        assert all(len(line) <= columns for line in done.out.splitlines())


def test_csv_has_a_line_for_every_row(run):
    """The rows of the JSON, one line each, with the advised one marked."""
    answer = run(*ASKED, "--json").answer
    rows = list(csv.DictReader(run(*ASKED, "--csv").out.splitlines()))
    assert [(row["gpu"], row["provider"]) for row in rows] == [(r["gpu"], r["provider"]) for r in answer["rows"]]
    assert [n for n, row in enumerate(rows) if row["recommended"] == "True"] == [answer["recommended"]]


@pytest.mark.parametrize(
    ("budget", "dollars"), [("40", 40.0), ("$40", 40.0), ("1,200.50", 1200.5), ("0.5", 0.5), (" $3. ", 3.0)]
)
def test_a_budget_as_people_write_it(run, budget, dollars):
    """Dollars with or without sign, groups and cents."""
    assert run(*ASKED, "--budget", budget, "--json").answer["budget_usd"] == dollars


@pytest.mark.parametrize(("deadline", "seconds"), [("12h", 43200), ("90m", 5400), ("1h30m", 5400), ("2d", 172800)])
def test_a_deadline_as_people_write_it(run, deadline, seconds):
    """A duration with its unit."""
    assert run(*ASKED, "--deadline", deadline, "--json").answer["deadline_s"] == seconds


def test_options_narrow_the_answer(run):
    """--provider, --gpu, --max-gpus and --spot leave only theirs."""
    answer = run(*ASKED, "--provider", "Lambda,aws", "--max-gpus", "2", "--json").answer
    assert {row["provider"] for row in answer["rows"]} == {"lambda", "aws"}
    assert max(row["num_gpus"] for row in answer["rows"]) <= 2
    answer = run(*ASKED, "--gpu", "t4", "--spot", "--json").answer
    assert {row["gpu"] for row in answer["rows"]} == {"t4"}
    assert all(row["rented"]["spot"] for row in answer["rows"])


def test_nothing_keeps_the_limits(run):
    """It is said so, and what comes nearest follows with what it misses."""
    done = run(*ASKED, "--budget", "0.0001")
    assert done.status == 0
    assert "Nothing keeps the limits" in done.out
    assert "over the budget by" in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--budget", "-5"), "--budget"),
        (("--budget", "nan"), "--budget"),
        (("--budget", "1e3"), "--budget"),
        (("--budget", "0"), "--budget"),
        (("--budget", "5€"), "--budget"),
        (("--deadline", "12"), "--deadline"),
        (("--deadline", "-2h"), "--deadline"),
        (("--deadline", "soon"), "--deadline"),
        (("--max-gpus", "0"), "--max-gpus"),
        (("--provider", "nobody"), "--provider"),
        (("--price", "1"), "--gpu"),
        (("--tokens", "0"), "--tokens"),
    ],
)
def test_what_is_refused_is_said_in_one_line(run, words, said):
    """Exit status 2, one line on stderr, nothing on stdout."""
    done = run(*ASKED, *words)
    assert done.status == 2
    assert done.out == ""
    assert said in done.err
    assert done.err.count("\n") == 1


def test_limits_need_a_length(run):
    """A deadline is of a whole run."""
    done = run("recommend", "gpt2", "--deadline", "2h")
    assert done.status == 2
    assert "--tokens" in done.err
