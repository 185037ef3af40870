"""`peftplan optimizers`: the list, and what every optimizer comes to on a model."""

from __future__ import annotations

from peftplan.optimizers import OPTIMIZERS


def test_a_word_is_part_of_a_name_or_a_model(run):
    """`lion` leaves four; another name is found too; `gpt2` is no part of a name, and answers for all of them."""
    named = run("optimizers", "lion", "--json").answer["rows"]
    assert [row["name"] for row in named] == ["lion", "lion-8bit", "paged-lion", "paged-lion-8bit"]
    assert all(row["peak_allocated_bytes"] is None for row in named)
    assert [row["name"] for row in run("optimizers", "adamw_bnb", "--json").answer["rows"]] == ["adamw-8bit"]
    on_model = run("optimizers", "gpt2", "--method", "full", "--json").answer["rows"]
    assert {row["name"] for row in on_model} == set(OPTIMIZERS)


def test_optimizers_on_a_model_are_ranked_by_their_peak(run):
    """Those that need least first; refused ones last, with the reason; figures are those of `estimate`."""
    words = ("--method", "full", "--seq-len", "128", "--gpu", "t4")
    rows = run("optimizers", "gpt2", *words, "--json").answer["rows"]
    runs = [row for row in rows if row["refused"] is None]
    assert rows[: len(runs)] == runs
    assert [row["peak_allocated_bytes"] for row in runs] == sorted(row["peak_allocated_bytes"] for row in runs)
    assert "names none that trains" in next(row["refused"] for row in rows if row["name"] == "galore-adamw")
    row = next(row for row in runs if row["name"] == "paged-adamw")
    answer = run("estimate", "gpt2", *words, "--optimizer", "paged-adamw", "--json").answer
    assert row["optimizer_states_bytes"] == answer["memory"]["resident"]["optimizer_states"]
    assert row["optimizer_paged_bytes"] == answer["memory"]["optimizer_paged_bytes"] > 0
    assert row["peak_allocated_bytes"] == answer["memory"]["peak_allocated_bytes"]
    assert row["step_s"] == answer["time"]["step_s"]


def test_the_screens_name_options_pages_and_the_host(run):
    """The list has the options of those that have some; on a model, states are told by where they lie."""
    out = run("optimizers", "--plain", columns=140).out
    assert "rank: width of projected gradients; default 128" in out
    assert "--optimizer-option NAME=VALUE" in out
    out = run("optimizers", "gpt2", "--method", "full", "--plain", columns=140).out
    for words in ("in pages", "on the host", "Not on this model"):
        assert words in out


def test_options_of_an_optimizer_are_given_piece_by_piece(run):
    """`--optimizer-option NAME=VALUE` may come several times, with dashes or underscores."""
    words = ("estimate", "llama-3.2-1b", "--method", "full", "--optimizer", "galore_adamw", "--seq-len", "64")
    given = ("--optimizer-option", "rank=8", "--optimizer-option", "update-proj-gap=50", "--json")
    asked = run(*words, *given).answer["request"]["optimizer_options"]
    assert asked == {"rank": 8, "update_proj_gap": 50, "target_modules": "attn,mlp"}
