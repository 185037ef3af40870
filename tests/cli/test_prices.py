"""`peftplan prices`: lists, filters, the age of the snapshot, and updates that are whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from datetime import date
from pathlib import Path

import pytest

from peftplan.catalog import prices as catalogue
from peftplan.cli.prices import FIELDS

TODAY = date(2026, 11, 22)
HEADER = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,Zone\n"
GOOD = "p5.48xlarge,H100,8,192,2048,,44.00,20.00,us-east-1,us-east-1a\n"


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """The user's file, in a folder that does not exist yet; ages are counted to a day that stays."""
    path = tmp_path / "share" / "peftplan" / "prices.csv"
    monkeypatch.setattr(catalogue, "prices_file", lambda: path)
    age_days = catalogue.age_days
    monkeypatch.setattr(catalogue, "age_days", lambda day: age_days(day, TODAY))
    return path


@pytest.fixture
def listed(tmp_path):
    """Writes a price list of AWS and gives its name."""

    def write(rows, name="aws.csv", header=HEADER):
        path = tmp_path / name
        path.write_text(header + rows)
        return str(path)

    return write


# ---- the list


def test_every_form_shows_the_same_prices(run):
    """The screen, Markdown, CSV and JSON hold as many rows, the cheapest GPU-hour first."""
    rows = run("prices", "h100", "--json").answer["rows"]
    prices = [row["usd_per_gpu_hour"] for row in rows]
    assert prices == sorted(prices)
    assert set(rows[0]) == set(FIELDS)
    assert len(list(csv.DictReader(io.StringIO(run("prices", "h100", "--csv").out)))) == len(rows)
    for form in ((), ("--plain",), ("--markdown",)):
        assert f"{len(rows)} prices" in run("prices", "h100", *form).out


def test_the_age_of_the_snapshot_is_told_and_old_prices_warned_of(run):
    """How many days ago the snapshot ends, and a warning where prices are older than a month."""
    done = run("prices", "--json")
    assert max(row["age_days"] for row in done.answer["rows"]) == 325
    assert any("older than 30 days, the oldest 325" in note for note in done.answer["notes"])
    assert any("ends 2026-09-27, 56 days ago" in note for note in done.answer["notes"])
    assert "older than 30 days" in run("prices").out


def test_fresh_prices_are_not_warned_of(run, listed):
    """What was read within a month is listed without a warning."""
    run("prices", "update", "--from", listed(GOOD), "--date", "2026-11-01")
    done = run("prices", "h100", "--provider", "aws", "--json")
    assert not any("older than" in note for note in done.answer["notes"])


def test_filters_leave_what_they_name(run):
    """By GPU, provider, region, and whether there is a spot price."""
    assert {row["gpu"] for row in run("prices", "--gpu", "RTX 4090", "--json").answer["rows"]} == {"rtx4090"}
    assert {row["provider"] for row in run("prices", "--provider", "vast", "--json").answer["rows"]} == {"vast.ai"}
    spot = run("prices", "--spot", "--region", "us-central1", "--json").answer["rows"]
    assert {row["provider"] for row in spot} == {"gcp"}
    prices = [row["spot_usd_per_gpu_hour"] for row in spot]
    assert prices == sorted(prices)


def test_a_gpu_that_only_price_lists_know_is_shown(run):
    """The Quadro RTX 6000 is no card of the catalogue, and has a price."""
    (row,) = run("prices", "RTX6000", "--json").answer["rows"]
    assert (row["gpu"], row["listed"]) == ("", "RTX6000")


@pytest.mark.parametrize("columns", [40, 80, 140])
def test_screens_keep_to_their_width(run, columns):
    """No line is wider than the terminal."""
    done = run("prices", "l40s", columns=columns)
    assert all(len(line) <= columns for line in done.out.splitlines())


REFUSED = {
    "prices h101": (4, "'h101' is no GPU of the catalogue; nearest: "),
    "prices --gpu zzzz": (4, "'zzzz' is no GPU of the catalogue"),
    "prices --provider nobody": (2, "--provider 'nobody' is unknown; there are aws"),
    "prices --region mars": (2, "--region 'mars' has no price"),
    "prices --provider aws --spot": (4, "no spot price is known for --provider 'aws'"),
    "prices --from x.csv": (2, "--from is of an update"),
    "prices --date 2026-01-01": (2, "--date is of an update"),
    "prices update": (2, "prices update needs --from"),
    "prices update --from nope.csv": (4, "does not exist"),
    "prices update --from x.csv --gpu h100": (2, "--gpu is a filter of the list"),
    "prices update --from ftp://x/aws.csv": (2, "no web address"),
    "prices one two": (2, "extra argument"),
    "prices --json --csv": (2, "exclude each other"),
}


@pytest.mark.parametrize("line", REFUSED)
def test_refused_in_one_line(run, line):
    """A wrong word is answered with its name, its value and what is allowed."""
    status, words = REFUSED[line]
    done = run(*line.split())
    assert (done.status, done.out) == (status, "")
    assert done.err.count("\n") == 1
    assert words in done.err


# ---- the update


def test_an_update_adds_prices_that_count_from_then_on(run, own, listed):
    """The list's price is newer than the snapshot's, so it is shown and used."""
    done = run("prices", "update", "--from", listed(GOOD), "--date", "2026-11-01", "--json")
    assert (done.status, done.answer["added"], done.answer["providers"]) == (0, 1, ["aws"])
    assert done.answer["file"] == str(own)
    (row,) = run("prices", "h100", "--provider", "aws", "--json").answer["rows"]
    assert (row["usd_per_gpu_hour"], row["spot_usd_per_gpu_hour"], row["date"]) == (5.5, 2.5, "2026-11-01")


def test_prices_are_appended_by_date(run, own, listed):
    """An older list adds its rows and changes nothing that is newer; the same list again adds none."""
    new, old = listed(GOOD), listed(GOOD.replace("44.00", "99.00"), "old.csv")
    run("prices", "update", "--from", new, "--date", "2026-11-01")
    older = run("prices", "update", "--from", old, "--date", "2026-10-01", "--provider", "aws", "--json")
    assert older.answer["added"] == 1
    (row,) = run("prices", "h100", "--provider", "aws", "--json").answer["rows"]
    assert row["usd_per_gpu_hour"] == 5.5
    before = own.read_bytes()
    again = run("prices", "update", "--from", new, "--date", "2026-11-01", "--json")
    assert (again.answer["added"], again.answer["unchanged"]) == (0, 1)
    assert own.read_bytes() == before


def test_the_same_day_again_replaces_that_day(run, own, listed):
    """A corrected list of one day leaves one price of it."""
    run("prices", "update", "--from", listed(GOOD), "--date", "2026-11-01")
    run("prices", "update", "--from", listed(GOOD.replace("44.00", "40.00")), "--date", "2026-11-01")
    assert own.read_text().count("2026-11-01") == 1
    assert ",40.00," in own.read_text()


def test_skipped_rows_are_told_with_their_lines(run, listed):
    """On the screen and in the JSON: why, how many, and where."""
    rows = GOOD + "a,H100,8,1,1,,-5,,us,us-a\nb,K80,1,1,1,,1,,us,us-a\nc,H100,8\n"
    done = run("prices", "update", "--from", listed(rows), "--json")
    assert {one["reason"]: one["lines"] for one in done.answer["skipped"]} == {
        "the price is negative": [3],
        "K80 is not in the catalogue of GPUs": [4],
        "the line is broken: it has not the columns of the first": [5],
    }
    screen = run("prices", "update", "--from", listed(rows)).out
    assert "the price is negative" in screen


NOTHING_TAKEN = {
    "another currency": (HEADER, GOOD + GOOD.replace("44.00", "€44.00"), "prices have to be in USD"),
    "a currency column": (HEADER.replace("vCPUs", "Currency"), GOOD.replace(",192,", ",EUR,"), "Currency 'EUR'"),
    "other columns": ("a,b\n", "1,2\n", "no price list that is known"),
    "no usable row": (HEADER, GOOD.replace("44.00", "nan"), "no price that can be used, of 1 rows; line 2"),
    "nothing": ("", "", "is empty"),
}


@pytest.mark.parametrize("kind", NOTHING_TAKEN)
def test_a_list_that_is_refused_leaves_the_file_as_it_was(run, own, listed, kind):
    """Nothing is half-written: what was there before is there to the byte, and nothing lies beside it."""
    run("prices", "update", "--from", listed(GOOD), "--date", "2026-11-01")
    before = own.read_bytes()
    header, rows, words = NOTHING_TAKEN[kind]
    done = run("prices", "update", "--from", listed(rows, header=header))
    assert (done.status, done.out) == (2, "")
    assert words in done.err
    assert own.read_bytes() == before
    assert list(own.parent.iterdir()) == [own]


def test_a_failed_write_leaves_the_file_as_it_was(run, own, listed, monkeypatch):
    """A disk that is full ends in one line, with the old prices in place."""
    run("prices", "update", "--from", listed(GOOD), "--date", "2026-11-01")
    before = own.read_bytes()

    def fail(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    done = run("prices", "update", "--from", listed(GOOD.replace("44", "43")), "--date", "2026-11-02")
    assert done.status == 2
    assert "No space left on device" in done.err
    assert own.read_bytes() == before
    assert list(own.parent.iterdir()) == [own]


def test_a_file_that_cannot_be_read_is_not_written_over(run, own, listed):
    """What lies there may be somebody's: it has to be moved away first."""
    own.parent.mkdir(parents=True)
    own.write_text("my notes\n")
    done = run("prices", "update", "--from", listed(GOOD))
    assert done.status == 2
    assert "move it away" in done.err
    assert own.read_text() == "my notes\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--date", "2999-01-01"), "is to come"),
        (("--date", "yesterday"), "give a day as"),
        (("--provider", "a b"), "is no provider's name"),
    ],
)
def test_what_an_update_is_told_is_checked(run, own, listed, words, told):
    """A day to come and a name that is none are refused before anything is written."""
    done = run("prices", "update", "--from", listed(GOOD), *words)
    assert done.status == 2
    assert told in done.err
    assert not own.exists()


def test_a_list_of_nobody_needs_its_provider(run, tmp_path: Path, listed):
    """A file's name that cannot be a provider's leaves --provider to say it."""
    name = listed(GOOD, "ünknown list.csv")
    done = run("prices", "update", "--from", name)
    assert done.status == 2
    assert "add --provider NAME" in done.err
    assert run("prices", "update", "--from", name, "--provider", "AWS").status == 0
