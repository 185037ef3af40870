"""Lists of runs: what a file may hold, what is refused, and runs at the edge of a card."""

from __future__ import annotations

import json

import pytest

from peftplan import estimate
from peftplan.cli.options import validated
from peftplan.errors import BadInput, NotFound
from peftplan.measure.profile.grid import read_grid
from peftplan.measure.profile.shrink import shrunk, shrunk_config
from peftplan.request import Request


def read(path, text, **given):
    path.write_text(text)
    return read_grid(path, given, validated)


def test_yaml_with_defaults(tmp_path):
    """Defaults hold for every run that does not state its own; how to measure is no field of a request."""
    text = """
    defaults: {model: gpt2, steps: 3, rank: 4}
    runs:
      - {}
      - {rank: 8, warmup: 1, weights: real, name: second}
    """
    first, second = (entry.wanted for entry in read(tmp_path / "g.yaml", text, seq_len=64))
    assert (first.request.rank, first.num_steps, first.request.seq_len) == (4, 3, 64)
    assert (second.request.rank, second.num_warmup, second.weights, second.name) == (8, 1, "real", "second")


def test_cases_of_a_measuring_script(tmp_path):
    """JSON lines with `config` and `request` are read as they are."""
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}
    case = {"id": 0, "model": "a/b", "config": config, "request": {"method": "qlora", "rank": 8}}
    (entry,) = read(tmp_path / "g.jsonl", json.dumps(case) + "\n\n")
    assert entry.wanted.request.model == config
    assert entry.wanted.request.method == "qlora"
    assert entry.wanted.name == "0"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("g.yaml", "runs: [", "is no YAML"),
        ("g.yaml", "- !!python/object/apply:os.system [ls]", "is no YAML"),
        ("g.yaml", "", "lists no runs"),
        ("g.yaml", "runs: []", "lists no runs"),
        ("g.yaml", "other: 1", "is no grid"),
        ("g.yaml", "- gpt2", "is no run"),
        ("g.yaml", "- {rank: 8}", "model is missing"),
        ("g.yaml", "- {model: gpt2, rank: 0}", "rank 0 is not allowed"),
        ("g.yaml", "- {model: gpt2, colour: red}", "colour is no field"),
        ("g.yaml", "- {model: gpt2, steps: 0}", "steps is 0"),
        ("g.yaml", "- {model: gpt2, steps: many}", "steps is 'many'"),
        ("g.yaml", "- {model: gpt2, weights: mine}", "weights is 'mine'"),
        ("g.yaml", "- {model: gpt2, edge: {vary: alpha, side: under}}", "edge's vary"),
        ("g.yaml", "- {model: gpt2, edge: near}", "edge is 'near'"),
        ("g.jsonl", '{"model": "gpt2"}\n{', "line 2 is no JSON"),
        ("g.json", '[{"model": NaN}]', "is no JSON"),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_one_line(tmp_path, name, text, said):
    """What is wrong is named, with the file and the run."""
    with pytest.raises(BadInput) as caught:
        read(tmp_path / name, text)
    assert said in str(caught.value)
    assert str(caught.value).startswith("--grid: ")


def test_a_file_that_is_not_there(tmp_path):
    """A missing file is told apart from a damaged one."""
    with pytest.raises(NotFound):
        read_grid(tmp_path / "none.yaml", {}, validated)


def test_the_edge_of_a_card(tmp_path):
    """Under: the largest that fits; over: the next, which does not."""
    text = "- {model: gpt2, method: full, seq_len: 1024, edge: {vary: micro_batch, side: SIDE}}"
    (under,) = read(tmp_path / "g.yaml", text.replace("SIDE", "under"))
    (over,) = read(tmp_path / "g.yaml", text.replace("SIDE", "over"))
    last, first = under.on("t4").request, over.on("t4").request
    assert first.micro_batch == last.micro_batch + 1 > 1
    assert estimate(last).gpu.fits
    assert not estimate(first).gpu.fits
    assert over.tiny().request.micro_batch <= 2
    with pytest.raises(BadInput, match="not in the catalogue"):
        under.on(None)


@pytest.mark.parametrize(
    "model", ["llama-2-70b", "mixtral", "gemma-2-9b", "qwen3-8b", "gpt2", "opt-1.3b", "qwen1.5-moe"]
)
def test_a_shrunk_run_keeps_its_kind(model):
    """The tiny model is of the same family with few parameters, and the closed form takes it."""
    asked = Request(model=model, method="lora", micro_batch=8, seq_len=4096, rank=64, gpu="a100-80")
    small = estimate(shrunk(asked))
    assert small.model.architecture == estimate(asked).model.architecture
    assert small.model.num_params < 500_000
    assert shrunk(asked).gpu is None


def test_a_small_config_is_not_enlarged():
    """What is small already stays."""
    config = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 96}
    assert shrunk_config(config) == config
