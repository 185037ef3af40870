"""`peftplan merge`: the ways, the advice, files; what cannot be merged."""

from __future__ import annotations

import json


def test_the_json_keeps_to_its_schema(run):
    """Every key of the answer stands in the schema, and every key that the schema asks for in the answer."""
    schema = json.loads(run("merge", "--json-schema").out)
    answer = run("merge", "gpt2", "--method", "lora", "--json").answer
    assert set(answer) == set(schema["properties"])
    way = schema["$defs"]["MergeWay"]
    assert all(set(one) == set(way["properties"]) for one in answer["ways"])
    assert set(answer["merging"]) == set(schema["$defs"]["Merging"]["properties"])


def test_the_screen_shows_ways_moments_time_and_files(run):
    """At 80 columns and at 140, with the advised way named."""
    for columns in (80, 140):
        out = run("merge", "llama-3-8b", "--method", "qlora", "--plain", columns=columns).out
        for words in ("Advised: nf4 base, unpacked", "Ways to merge", "Time of the advised way", "On disk"):
            assert words in out
        assert max(len(line) for line in out.splitlines()) <= columns


def test_each_way_is_a_row_of_the_csv(run):
    """With its moments and its seconds."""
    lines = run("merge", "gpt2", "--csv").out.splitlines()
    assert lines[0].startswith("way,device,title")
    assert [line.split(",")[:2] for line in lines[1:]] == [["merge", "gpu"], ["merge", "cpu"]]


def test_what_cannot_be_merged_exits_with_one_line(run):
    """Bad input, the reason, and what to do."""
    done = run("merge", "gpt2", "--method", "prompt-tuning")
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert "peftplan serve" in done.err


def test_rates_and_sizes_are_read_with_their_units(run):
    """A stated disk rate is what the time rests on; sizes take units."""
    words = ("--disk-gb-per-s", "2.5", "--max-shard-size", "100MB", "--tasks", "5k", "--json")
    answer = run("merge", "gpt2", *words).answer
    assert answer["rates"]["disk_bytes_per_s"] == 2.5e9
    assert answer["rates"]["basis"]["disk"] == "stated"
    assert answer["disk"]["tasks"] == 5000
    assert answer["ways"][0]["num_files"] > 1
