"""`peftplan serve`: the answer's forms, the figures that people quote, exit statuses, refusals."""

from __future__ import annotations

import csv
import io
import json

import pytest

SERVE = ("serve", "llama-7b", "--adapters", "100", "--hot", "20")
KEYS = {
    *("schema_version", "request", "serving", "model", "adapter", "storage", "cache", "device", "gpu", "limits"),
    *("speed", "copies", "money", "versions", "notes"),
}
GB = 10**9


def test_the_json_has_every_part(run):
    """Its keys are those of the schema, with request and options as they were filled in."""
    answer = run(*SERVE, "--gpu", "a100-80", "--json").answer
    schema = json.loads(run("serve", "--json-schema").out)
    assert set(answer) == set(schema["properties"]) == KEYS
    assert set(answer["serving"]) == set(schema["$defs"]["Serving"]["properties"])
    assert answer["serving"]["concurrency"] == 8
    assert answer["request"]["seq_len"] == 2048
    assert "optimizer" not in answer["request"]


def test_seventy_billion_and_a_hundred_adapters(run):
    """100 adapters of 50 MB take 5 GB, 20 hot ones 1 GB; the base 138 GB in 16 bits and 36 in 4."""
    words = ("serve", "llama-70b", "--adapters", "100", "--hot", "20", "--adapter-size", "50MB")
    dense, packed = (run(*words, *more, "--json").answer for more in ((), ("--quant", "nf4")))
    for answer in (dense, packed):
        assert answer["storage"]["adapters_disk_bytes"] == 5 * GB
        assert answer["storage"]["hot_bytes"] == GB

    def base(answer):
        return answer["device"]["breakdown"]["children"][0]["bytes"] / GB

    assert base(dense) == pytest.approx(138, rel=0.01)
    assert base(packed) == pytest.approx(36, rel=0.02)


def test_a_thousand_customers_of_gpt_3(run):
    """Copies of 350 GB each against one base and 35 MB adapters: 350 TB, 385 GB, 909 times."""
    words = ("serve", "gpt-3", "--adapters", "1000", "--rank", "4", "--targets", "attention")
    answer = run(*words, "--adapter-size", "35MB", "--json").answer
    assert answer["storage"]["base_disk_bytes"] / GB == pytest.approx(350, rel=0.01)
    assert answer["copies"]["disk_bytes"] / GB == pytest.approx(350_000, rel=0.01)
    assert answer["copies"]["shared_disk_bytes"] / GB == pytest.approx(385, rel=0.01)
    assert answer["copies"]["disk_ratio"] == pytest.approx(909, rel=0.01)


def test_fifty_customers_of_a_7b(run):
    """50 copies of a 7B model in 16 bits are about 700 GB."""
    answer = run("serve", "llama-7b", "--adapters", "50", "--json").answer
    assert answer["copies"]["disk_bytes"] / GB == pytest.approx(700, rel=0.05)


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_the_screen_shows_memory_time_and_money(run, columns):
    """Every part has its table, on narrow and wide terminals."""
    out = run(*SERVE, "--gpu", "a100-80", columns=columns).out
    for words in (
        "GPU memory",
        "Where adapters lie",
        "Keys and values of one sequence",
        "How far its memory goes",
        "A token for each of 8 sequences",
        "Adapters beside the base",
        "Different adapters in one batch",
        "100 copies of the model against one base",
        "Dollars",
        "Notes",
    ):
        assert words in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= columns


@pytest.mark.parametrize("form", ["--plain", "--markdown"])
def test_other_forms_show_the_same(run, form):
    """Plain text and Markdown have the same tables."""
    out = run(*SERVE, "--gpu", "a100-80", form, columns=100).out
    assert "Where adapters lie" in out
    assert "latent" not in out


def test_the_csv_is_one_row_named_as_the_json(run):
    """Columns are paths of the JSON; parts of GPU memory sum to it."""
    words = (*SERVE, "--gpu", "a100-80")
    rows = list(csv.DictReader(io.StringIO(run(*words, "--csv").out)))
    answer = run(*words, "--json").answer
    assert len(rows) == 1
    assert int(rows[0]["storage.hot_bytes"]) == answer["storage"]["hot_bytes"]
    assert float(rows[0]["speed.decode.step_s"]) == answer["speed"]["decode"]["step_s"]
    parts = [int(value) for name, value in rows[0].items() if name.startswith("device.breakdown.")]
    assert sum(parts) == answer["device"]["device_bytes"]


@pytest.mark.parametrize(("gpu", "status"), [("a100-80", 0), ("t4", 1)])
def test_check_says_whether_it_fits(run, gpu, status):
    """0 fits, 1 does not."""
    assert run(*SERVE, "--gpu", gpu, "--check", "--json").status == status


def test_check_says_where_it_cannot_tell(run):
    """3 where the CUDA context decides."""
    words = (*SERVE, "--gpu", "a100-80", "--check", "--json")
    answer = run(*words).answer
    frac = answer["device"]["device_bytes"] / answer["gpu"]["usable_bytes"]
    assert run(*words, "--memory-frac", f"{frac:.6f}").status == 3


def test_counts_and_sizes_are_taken_as_people_write_them(run):
    """1k adapters of 24MiB."""
    answer = run("serve", "gpt2", "--adapters", "1k", "--adapter-size", "24MiB", "--json").answer
    assert answer["serving"]["adapters"] == 1000
    assert answer["adapter"]["bytes"] == 24 * 1024**2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("serve", "llama-7b"), "--adapters says how many adapters share the base, and is missing"),
        (("serve", "llama-7b", "--adapters", "0"), "--adapters 0 is not allowed; give a whole number from 1"),
        (("serve", "llama-7b", "--adapters", "many"), "--adapters many is not allowed"),
        ((*SERVE, "--adapter-size", "big"), "--adapter-size big is not allowed; give a size, such as 50MB"),
        ((*SERVE, "--kv-dtype", "fp9"), "--kv-dtype fp9 is not allowed; give one of auto"),
        ((*SERVE, "--memory-frac", "1.5"), "--memory-frac 1.5 is not allowed; give a number above 0 to 1"),
        ((*SERVE, "--check"), "--check asks whether the server fits a GPU; name one"),
        ((*SERVE, "--optimizer", "sgd"), "No such option: --optimizer"),
        ((*SERVE, "--tensor-parallel", "2"), "No such option: --tensor-parallel"),
        ((*SERVE, "--json", "--csv"), "exclude each other"),
    ],
)
def test_what_is_refused(run, words, line):
    """One line on stderr, nothing on stdout, status 2."""
    done = run(*words)
    assert done.status == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert line in done.err
