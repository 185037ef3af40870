"""Training styles on the command line: what they answer, and what they refuse in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from peftplan.cli import main

REFUSED = {
    "--style dpp": "did you mean dpo?",
    "--style dpo --reference none": "--reference none is not allowed",
    "--reference model": "--reference is of --style dpo, kto, grpo",
    "--num-labels 0": "--num-labels 0 is not allowed",
    "--num-labels 3": "--num-labels is of --style classification",
    "--style dpo --method full --reference adapter-off": "no adapters to switch off",
    "--style dpo --seq-len 8 --completion-len 8": "for the other part",
    "--style grpo": "give --micro-batch 2 or more",
    "--style grpo -b 6 --num-generations 4": "does not divide the 6 completions",
    "--style grpo -b 2 --reference precomputed": "generated as it trains",
    "--style kto": "give 2 or more",
    "--style dpo --loss fused": "leave --loss out",
    "--style dpo --padding-free": "needs a row for each sequence",
    "--padding-free --padding": "leave one of the two out",
    "--eval-generate 0": "--eval-generate 0 is not allowed",
}


@pytest.mark.parametrize("words", REFUSED)
def test_contradictions_exit_2_with_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing on stdout, one line on stderr: what was given, what is allowed, what to do."""
    assert main(["estimate", "llama-3-8b", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert REFUSED[words] in err


def test_a_style_is_answered_in_json_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """Defaults are filled in, generation is a moment of its own, and its seconds a term of the step."""
    words = "estimate gpt2 --style grpo -b 4 --prompt-len 64 --completion-len 64 --gpu a100-80 --json"
    assert main(words.split()) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["request"]["seq_len"] == 128
    assert answer["request"]["num_generations"] == 4
    assert answer["memory"]["moments"]["generation"] > answer["memory"]["moments"]["loaded"]
    assert answer["time"]["terms"]["generation"] > 0


def test_the_line_of_settings_names_the_style(capsys: pytest.CaptureFixture[str]) -> None:
    """In the place of the next token's loss stands the style, with its reference."""
    assert main(["estimate", "gpt2", "--style", "dpo", "--seq-len", "64", "--plain"]) == 0
    assert "dpo against reference adapter-off" in " ".join(capsys.readouterr().out.split())


def test_an_evaluation_that_is_asked_for_must_fit_too(run: Callable[..., Any]) -> None:
    """A cache that outgrows the card makes the run unfit, for certain, and by how much is told."""
    run_it = ["estimate", "llama-3-8b", "--method", "qlora", "--gpu", "rtx4090"]
    words = [*run_it, "--seq-len", "512", "-b", "4", "--json"]
    step = run(*words).answer
    long = run(*words, "--eval-generate", "20000").answer
    assert step["gpu"]["fits"]
    assert long["memory"]["evaluation_peak_bytes"] > long["gpu"]["usable_bytes"]
    assert (long["gpu"]["fits"], long["gpu"]["certain"]) == (False, True)
    assert long["gpu"]["headroom_bytes"] < 0
    assert any("what fits counts it" in note for note in long["notes"])
