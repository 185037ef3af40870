"""`peftplan methods`: the list, and what every method comes to on a model; options of one method alone."""

from __future__ import annotations

from peftplan.methods import METHODS


def test_a_word_is_part_of_a_name_or_a_model(run):
    """`dora` leaves two methods; `gpt2` is no part of a name, and answers for all of them."""
    named = run("methods", "dora", "--json").answer["rows"]
    assert [row["name"] for row in named] == ["dora", "qdora"]
    assert all(row["peak_allocated_bytes"] is None for row in named)
    on_model = run("methods", "gpt2", "--json").answer["rows"]
    assert {row["name"] for row in on_model} == set(METHODS)


def test_methods_on_a_model_are_ranked_by_their_peak(run):
    """Those that need least first; refused ones last, with the reason."""
    rows = run("methods", "gpt2", "--json").answer["rows"]
    peaks = [row["peak_allocated_bytes"] for row in rows if row["refused"] is None]
    assert peaks == sorted(peaks)
    refused = {row["name"]: row["refused"] for row in rows if row["refused"] is not None}
    assert rows[-len(refused) :] == [row for row in rows if row["refused"] is not None]
    assert "Conv1D" in refused["loha"]
    assert "--no-checkpointing" in refused["prefix-tuning"]


def test_figures_on_a_model_are_those_of_estimate(run):
    """The options are those of a run, and each row says what `estimate` says of that method."""
    words = ("--rank", "4", "--seq-len", "128", "--gpu", "t4")
    row = next(row for row in run("methods", "gpt2", *words, "--json").answer["rows"] if row["name"] == "vera")
    answer = run("estimate", "gpt2", "--method", "vera", *words, "--json").answer
    assert row["num_trainable_params"] == answer["method"]["num_trainable_params"]
    assert row["adapter_checkpoint_bytes"] == answer["method"]["adapter_checkpoint_bytes"]
    assert row["peak_allocated_bytes"] == answer["memory"]["peak_allocated_bytes"]
    assert row["step_s"] == answer["time"]["step_s"]


def test_the_screen_says_what_becomes_of_each(run):
    """Figures, then merging, inference, paper and the release of peft that was read; reasons of what is refused."""
    out = run("methods", "llama-7b", "--plain", columns=160).out
    for words in (
        "By peak of allocated memory",
        "After training",
        "arXiv:2402.09353",
        "not possible: it is no change",
    ):
        assert words in out
    assert "bitfit: --method bitfit trains biases" in out


def test_all_methods_are_compared_by_their_peaks(run):
    """One column each in the JSON, one row each on the screen; what does not run is told on stderr."""
    done = run("compare", "gpt2", "--methods", "all", "--json")
    columns = done.answer["columns"]
    peaks = [column["memory"]["peak_allocated_bytes"] for column in columns]
    assert peaks == sorted(peaks)
    left_out = {line.split(": ")[1] for line in done.err.splitlines()}
    assert {column["method"]["kind"] for column in columns} | left_out == set(METHODS)
    assert "By peak of allocated memory" in run("compare", "gpt2", "--methods", "all", "--plain").out


def test_options_of_a_method_may_come_several_times(run):
    """Each is a name and a value; dashes are underscores."""
    words = ("--method-option", "init-r=9", "--method-option", "target_r=4")
    answer = run("estimate", "gpt2", "--method", "adalora", "--rank", "4", *words, "--json").answer
    assert answer["request"]["method_options"] == {"init_r": 9, "target_r": 4, "total_step": 1000}


def test_an_option_without_a_value_is_refused(run):
    """In a line that shows how one is written."""
    done = run("estimate", "gpt2", "--method-option", "init_r")
    assert done.status == 2
    assert "--method-option init_r is not allowed; give NAME=VALUE" in done.err


def test_saved_requests_keep_the_options_of_their_method(run, tmp_path):
    """What an answer wrote is read again as the same run."""
    words = ("estimate", "gpt2", "--method", "prompt-tuning", "--method-option", "num_virtual_tokens=7", "--json")
    saved = tmp_path / "run.json"
    saved.write_text(run(*words).out, encoding="utf-8")
    again = run("compare", str(saved), str(saved), "--json").answer["columns"]
    assert [column["request"]["method_options"] for column in again] == [{"num_virtual_tokens": 7}] * 2
