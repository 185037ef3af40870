"""What the commands answer: the keys of the public interface, sums that hold, exit statuses."""

from __future__ import annotations

import csv
import json

import pytest

from peftplan.catalog import all_gpus, all_models
from peftplan.methods import METHODS
from peftplan.request import Request

# Methods that llama-7b, checkpointed, has no run of.
KEPT = ("llama-7b", "--no-checkpointing")
RUNS = {"bitfit": ("gpt2",), **dict.fromkeys(("prefix-tuning", "p-tuning-v2", "cartridge", "poly"), KEPT)}
# The public interface, key by key; what is null here may be null.
TOP = ("schema_version", "request", "model", "method", "memory", "gpu", "time", "cost", "notes")
MODEL = ("id", "architecture", "num_params", "num_active_params")
METHOD = ("kind", "num_trainable_params", "trainable_frac", "adapter_checkpoint_bytes")
MEMORY = (
    "peak_moment",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "device_bytes",
    "interval",
    "resident",
    "activations_bytes",
    "moments",
    "breakdown",
)
INTERVAL = ("low_bytes", "high_bytes", "coverage", "basis")
RESIDENT = ("weights", "adapters", "gradients", "master_weights", "optimizer_states")
MOMENTS = ("loaded", "forward", "forward_end", "loss", "backward", "optimizer_step")
GPU = (
    "name",
    "num_gpus",
    "sold_bytes",
    "driver_bytes",
    "usable_bytes",
    "fits",
    "certain",
    "headroom_bytes",
)
QLORA = ("estimate", "llama-7b", "--method", "qlora", "--gpu", "rtx4090")


def test_keys_of_an_estimate(run):
    """The JSON of an estimate has every key of the interface, in every part."""
    answer = run(*QLORA, "--json").answer
    assert set(TOP) <= set(answer)
    assert set(answer["request"]) == set(Request.model_fields)
    assert set(MODEL) <= set(answer["model"])
    assert set(METHOD) <= set(answer["method"])
    memory = answer["memory"]
    assert set(MEMORY) <= set(memory)
    assert set(INTERVAL) <= set(memory["interval"])
    assert set(RESIDENT) == set(memory["resident"])
    assert set(MOMENTS) == set(memory["moments"])
    assert set(GPU) <= set(answer["gpu"])
    assert answer["schema_version"] == 1


def test_without_a_gpu_the_answer_says_null(run):
    """No GPU asked for: `gpu` is null, and so are time and cost."""
    answer = run("estimate", "gpt2", "--json").answer
    assert answer["gpu"] is None
    assert answer["time"] is None
    assert answer["cost"] is None


def sums_up(node):
    children = node["children"]
    assert not children or node["bytes"] == sum(child["bytes"] for child in children)
    for child in children:
        sums_up(child)


@pytest.mark.parametrize("method", METHODS)
def test_the_breakdown_is_the_peak(run, method):
    """The breakdown equals the allocated peak to the byte, and every node is the sum of its children."""
    memory = run("estimate", *RUNS.get(method, ("llama-7b",)), "--method", method, "--json").answer["memory"]
    assert memory["breakdown"]["bytes"] == memory["peak_allocated_bytes"]
    assert memory["moments"][memory["peak_moment"]] == memory["peak_allocated_bytes"]
    sums_up(memory["breakdown"])


def test_json_is_one_compact_line(run):
    """JSON goes to stdout alone, on one line; stderr stays empty."""
    done = run(*QLORA, "--json")
    assert done.out.count("\n") == 1
    assert done.err == ""


def test_python_and_command_agree(run):
    """The command prints what `estimate` returns."""
    from peftplan import estimate

    report = estimate(Request(model="llama-7b", method="qlora", gpu="rtx4090"))
    assert run(*QLORA, "--json").out.strip() == report.model_dump_json()


def test_csv_of_an_estimate_is_one_row(run):
    """CSV holds one row named as in the JSON; its parts of the peak sum to the peak."""
    rows = list(csv.DictReader(run(*QLORA, "--csv").out.splitlines()))
    assert len(rows) == 1
    parts = sum(int(value) for key, value in rows[0].items() if key.startswith("memory.breakdown."))
    assert parts == int(rows[0]["memory.peak_allocated_bytes"])


def test_markdown_has_headings_and_tables(run):
    """Markdown is headings, pipe tables and lists."""
    out = run(*QLORA, "--markdown").out
    assert out.startswith("## meta-llama")
    assert "| peak allocated |" in out.replace("**", "")
    assert "\x1b" not in out


@pytest.mark.parametrize(("gpu", "seq_len", "status"), [("h100", "2048", 0), ("rtx4090", "2048", 1)])
def test_check_says_whether_it_fits(run, gpu, seq_len, status):
    """`--check` exits with 0 where the run fits and 1 where it does not, and prints the answer as well."""
    words = ("estimate", "llama-70b", "--method", "qlora", "--gpu", gpu, "-s", seq_len)
    done = run(*words, "--check", "--json")
    assert done.status == status
    assert done.answer["gpu"]["fits"] is (status == 0)


def test_check_says_where_it_is_uncertain(run, monkeypatch):
    """`--check` exits with 3 where the interval straddles the capacity."""
    from peftplan import planner

    report = planner.estimate(Request(model="gpt2", gpu="rtx4090"))
    doubtful = report.model_copy(update={"gpu": report.gpu.model_copy(update={"certain": False})})
    monkeypatch.setattr(planner, "estimate", lambda request: doubtful)
    assert run("estimate", "gpt2", "--gpu", "rtx4090", "--check").status == 3


def test_without_check_an_unfit_run_is_still_an_answer(run):
    """The exit status says whether there is an answer, unless --check asks for more."""
    assert run("estimate", "llama-70b", "--gpu", "rtx4090", "--json").status == 0


def test_an_unfit_run_is_told_what_to_change(run):
    """A run that does not fit names single changes that make it fit, and what each saves."""
    out = run("estimate", "llama-7b", "--method", "full", "--gpu", "rtx4090", "--plain").out
    assert "does not fit" in out
    after = out.partition("Each of these alone makes it fit")[2]
    assert "--method qlora" in after.partition("Notes")[0]


def test_full_fine_tuning_shows_the_other_recipes(run):
    """Full fine-tuning is shown under every precision recipe."""
    out = run("estimate", "gpt2", "--method", "full", "--plain").out
    table = out.partition("other precision recipes")[2].partition("Notes")[0]
    assert all(name in table for name in ("bf16-mixed", "bf16-master", "fp32", "fp16"))


@pytest.mark.parametrize("targets", ["all-linear", "attention", "q_proj,v_proj", r".*\.(q|k)_proj"])
def test_targets_take_words_names_and_a_regex(run, targets):
    """`--targets` takes the known words, names with commas, or a regular expression."""
    answer = run("estimate", "llama-7b", "--targets", targets, "--json").answer
    assert answer["request"]["targets"] == targets
    assert answer["method"]["num_trainable_params"] > 0


def test_modules_to_save_take_commas(run):
    """`--modules-to-save` takes names with commas."""
    answer = run("estimate", "llama-7b", "--modules-to-save", "lm_head, embed_tokens", "--json").answer
    assert answer["request"]["modules_to_save"] == ["lm_head", "embed_tokens"]


def test_switches_have_an_opposite(run):
    """`--no-checkpointing` and its like set their field to false."""
    answer = run(
        "estimate",
        "llama-7b",
        "--no-checkpointing",
        "--method",
        "qlora",
        "--no-double-quant",
        "--json",
    ).answer
    assert answer["request"]["checkpointing"] is False
    assert answer["request"]["double_quant"] is False


# ---- compare


def test_terms_of_a_comparison_sum_to_each_peak(run):
    """In every column of a comparison the terms sum to that run's peak."""
    answer = run("compare", "llama-7b", "--json").answer
    assert [column["method"]["kind"] for column in answer["columns"]] == ["full", "lora", "qlora"]
    for index, column in enumerate(answer["columns"]):
        total = sum(term["bytes"][index] for term in answer["terms"])
        assert total == column["memory"]["peak_allocated_bytes"]


def test_compare_takes_the_methods_named(run):
    """`--methods` sets the columns and their order."""
    answer = run("compare", "llama-7b", "--methods", "qlora, full", "--json").answer
    assert [column["method"]["kind"] for column in answer["columns"]] == ["qlora", "full"]


def test_compare_marks_smallest_and_largest(run):
    """The screen marks the smallest and the largest of a row."""
    lines = run("compare", "llama-7b", "--plain").out.splitlines()
    weights = next(line for line in lines if line.startswith("weights"))
    assert weights.count(">") == 2
    assert weights.count("<") == 1


def test_compare_diffs_saved_requests(run, tmp_path):
    """Two files, a request and a whole answer, are compared; the screen names the fields that differ."""
    answer, request = tmp_path / "a.json", tmp_path / "b.json"
    answer.write_text(run("estimate", "llama-7b", "--method", "qlora", "--json").out)
    request.write_text(json.dumps({"model": "llama-7b", "method": "qlora", "rank": 64}))
    done = run("compare", str(answer), str(request), "--json")
    assert [column["request"]["rank"] for column in done.answer["columns"]] == [16, 64]
    screen = run("compare", str(answer), str(request), "--plain").out
    assert "rank" in screen.partition("Where the requests differ")[2]


def test_options_override_saved_requests(run, tmp_path):
    """An option beside saved requests sets that field in all of them."""
    saved = tmp_path / "a.json"
    saved.write_text(json.dumps({"model": "gpt2", "seq_len": 256}))
    done = run("compare", str(saved), str(saved), "--seq-len", "512", "--json")
    assert [column["request"]["seq_len"] for column in done.answer["columns"]] == [512, 512]


def test_csv_of_a_comparison_has_the_terms(run):
    """CSV of a comparison: one row a term, one column a run, the peak last."""
    rows = list(csv.reader(run("compare", "llama-7b", "--csv").out.splitlines()))
    assert rows[0] == ["term", "full", "lora", "qlora"]
    terms, peaks = rows[1:-1], rows[-1]
    assert [sum(int(row[i]) for row in terms) for i in (1, 2, 3)] == [int(v) for v in peaks[1:]]


# ---- explain


def test_explain_covers_the_peak(run):
    """Every leaf of the breakdown is explained: formula and bytes, and they sum to the peak."""
    answer = run("explain", "llama-7b", "--method", "qlora", "--json").answer
    figures = [f for f in answer["figures"] if f["group"] == "Allocated at the peak"]
    *leaves, total = figures
    assert sum(figure["bytes"] for figure in leaves) == total["bytes"]
    assert all(figure["formula"] for figure in leaves)


@pytest.mark.parametrize("method", METHODS)
def test_every_source_that_explain_cites_is_listed(run, method):
    """A source named behind a figure has its title and place in the answer."""
    answer = run("explain", *RUNS.get(method, ("llama-7b",)), "--method", method, "--json").answer
    cited = {figure["source"] for figure in answer["figures"]} - {""}
    assert cited
    assert cited == set(answer["sources"])


def test_explain_says_what_qlora_and_the_base_mean(run):
    """explain says that bitsandbytes defaults to FP4 without double quantisation, and TRL to an fp32 base."""
    out = " ".join(run("explain", "llama-7b", "--method", "qlora", "--plain").out.split())
    assert "bitsandbytes' own config defaults to FP4 without it" in out
    assert "stock TRL config" in out


def test_products_in_explain_come_to_their_bytes(run):
    """The numbers put into a formula multiply to the bytes beside it."""
    answer = run("explain", "llama-7b", "--method", "qlora", "--json").answer
    checked = 0
    for figure in answer["figures"]:
        formula = figure["formula"].partition(" B (")[0].replace("(", "").replace(")", "")
        if figure["formula"].endswith(")") and " B (" in figure["formula"]:
            product = 1
            for factor in formula.split(" x "):
                product *= int(factor)
            assert product == figure["bytes"], figure
            checked += 1
    assert checked > 10


def test_estimate_with_explain_adds_the_explanation(run):
    """`estimate --explain` answers and explains, on screen and in JSON."""
    answer = run("estimate", "gpt2", "--explain", "--json").answer
    assert answer["explanation"]["figures"]
    assert set(TOP) <= set(answer)
    out = run("estimate", "gpt2", "--explain", "--plain").out
    assert "Three totals" in out
    assert "Sources" in out


# ---- catalogues and doctor


def test_models_are_all_listed(run):
    """`models` lists the whole catalogue; a filter leaves what has it in a name."""
    rows = run("models", "--json").answer["rows"]
    assert [row["id"] for row in rows] == [record.id for record in all_models()]
    some = run("models", "LLAMA_2 70b", "--json").answer["rows"]
    assert "meta-llama/Llama-2-70b-hf" in [row["id"] for row in some]
    assert len(some) < len(rows)


def test_gpus_are_all_listed(run):
    """`gpus` lists the whole catalogue with its three capacities."""
    rows = run("gpus", "--json").answer["rows"]
    assert [row["key"] for row in rows] == [record.key for record in all_gpus()]
    assert all(row["usable_bytes"] <= row["driver_bytes"] for row in rows)


def test_methods_are_all_listed(run):
    """`methods` lists every method with its sentence."""
    rows = run("methods", "--json").answer["rows"]
    assert [row["name"] for row in rows] == list(METHODS)


@pytest.mark.parametrize("command", ["models", "gpus", "prices", "methods", "doctor"])
@pytest.mark.parametrize("form", ["--plain", "--markdown", "--csv"])
def test_lists_have_every_form(run, command, form):
    """Every list comes as text, Markdown and CSV."""
    done = run(command, form)
    assert done.status == 0
    assert done.out.count("\n") > 3


def test_doctor_looks_without_importing(run):
    """`doctor` names what is here and what needs it, and imports no heavy library to find out."""
    import subprocess
    import sys

    code = (
        "import sys; from peftplan.cli import main; main(['doctor', '--json']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'peft')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["python"]["found"]
    assert rows["peftplan"]["needed_by"] == "every command"
    assert all(set(row) == {"name", "found", "detail", "needed_by"} for row in rows.values())
