"""What is refused, one by one: one line on stderr, nothing on stdout, the exit status of the interface."""

from __future__ import annotations

import json

import pytest

from peftplan.cli import main

# words -> (exit status, what the line says)
REFUSED = {
    "estimate nope": (4, "nope is no catalogue name, file or folder"),
    "estimate lama-2-7b": (4, "nearest in the catalogue"),
    "estimate gpt2 --gpu rtx4900": (4, "--gpu"),
    "estimate": (2, "MODEL"),
    "estimate gpt2 more": (2, "extra argument"),
    "estimate gpt2 --bogus": (2, "--bogus"),
    "estimate gpt2 --tokens 0": (2, "--tokens 0 is not allowed; give a whole number from 1"),
    "estimate gpt2 --tokens -5M": (2, "--tokens -5M is not allowed"),
    "estimate gpt2 --tokens 1.5": (2, "--tokens 1.5 is not allowed"),
    "estimate gpt2 --tokens nan": (2, "--tokens nan is not allowed"),
    "estimate gpt2 --tokens 50MiB": (2, "--tokens 50MiB is not allowed"),
    "estimate gpt2 --tokens 5 --examples 5": (2, "--tokens and --examples both state the run's length"),
    "estimate gpt2 --examples -1": (2, "--examples -1 is not allowed"),
    "estimate gpt2 --epochs 0": (2, "--epochs 0 is not allowed; give a number above 0"),
    "estimate gpt2 --price -1": (2, "--price -1 is not allowed; give a number above 0"),
    "estimate gpt2 --price nan": (2, "--price nan is not allowed"),
    "estimate gpt2 --price 0": (2, "--price 0 is not allowed"),
    "estimate gpt2 --provider nobody": (2, "--provider 'nobody' is unknown; there are aws"),
    "estimate gpt2 --provider aws --region mars": (2, "--region 'mars' has no price; aws has us-east-1"),
    "estimate gpt2 --packing": (2, "add --data FILE"),
    "estimate gpt2 --eval-every 5": (2, "add --eval-tokens"),
    "estimate gpt2 --data nope.jsonl": (4, "--data 'nope.jsonl' does not exist"),
    "estimate gpt2 -b": (2, "-b"),
    "bogus gpt2": (2, "there is no command 'bogus'"),
    "estimat gpt2": (2, "did you mean estimate?"),
    "estimate gpt2 --method lor": (2, "did you mean lora?"),
    "estimate gpt2 --optimizer adamw-9bit": (2, "--optimizer"),
    "estimate gpt2 --micro-batch 0": (2, "--micro-batch 0 is not allowed; give a whole number from 1"),
    "estimate gpt2 --micro-batch -1": (2, "--micro-batch -1 is not allowed"),
    "estimate gpt2 --micro-batch 1.5": (2, "--micro-batch 1.5 is not allowed"),
    "estimate gpt2 --micro-batch nan": (2, "--micro-batch nan is not allowed"),
    "estimate gpt2 --micro-batch 1e400": (2, "--micro-batch 1e400 is not allowed"),
    "estimate gpt2 --micro-batch 1_000": (2, "--micro-batch 1_000 is not allowed"),
    "estimate gpt2 --seq-len ٣": (2, "is not allowed"),  # a digit of another script
    f"estimate gpt2 --seq-len {'9' * 5000}": (2, "--seq-len 9999"),
    "estimate gpt2 --seq-len 100000001": (2, "to 100,000,000"),
    "estimate gpt2 --rank 0": (2, "--rank 0"),
    "estimate gpt2 --grad-accum 0": (2, "--grad-accum 0"),
    "estimate gpt2 --alpha nan": (2, "--alpha nan is not allowed; give a number above 0"),
    "estimate gpt2 --alpha inf": (2, "--alpha inf"),
    "estimate gpt2 --alpha 1e400": (2, "--alpha 1e400"),
    "estimate gpt2 --alpha 0": (2, "--alpha 0"),
    "estimate gpt2 --dropout 1": (2, "--dropout 1 is not allowed; give a number from 0 below 1"),
    "estimate gpt2 --dropout -0.1": (2, "--dropout -0.1"),
    "estimate gpt2 --precision bf15": (2, "did you mean bf16?"),
    "estimate t5-base --style classification": (2, "take another model"),
    "estimate gpt-oss-20b --method houlsby": (2, "take --method lora"),
    "estimate llama-3-8b --method hra --rank 20000": (2, "give at most 14336"),
    "estimate gpt2 --quant gptq --method dora": (2, "plain LoRA only"),
    "estimate gpt2 --quant awq --quant-bits 8": (2, "it has 4"),
    "estimate gpt2 --quant hqq --quant-option axis=2": (2, "--quant-option axis=2 is not allowed"),
    "estimate gpt2 --quant-option axis=1": (2, "add --quant"),
    "estimate gpt2 --quant mxfp4": (2, "leave --quant out"),
    "estimate gpt2 --quant nf8": (2, "give one of none, nf4, fp4, int8, gptq"),
    "estimate gpt2 --quant-block-size 65": (2, "give one of 32, 64"),
    "estimate gpt2 --gpus 0": (2, "--gpus 0 is not allowed; give a whole number from 1 to 4,096"),
    "estimate gpt2 --sharding ddp": (2, "--sharding ddp spreads a batch over several GPUs, and --gpus is 1"),
    "estimate gpt2 --method lora --precision bf16-master": (2, "bf16-master"),
    "estimate gpt2 --method full --quant nf4": (2, "--quant nf4"),
    "estimate gpt2 --use-reentrant --no-checkpointing": (2, "leave one of the two out"),
    "estimate deberta-v3-base --method full --use-reentrant": (2, "use --no-use-reentrant"),
    "estimate gpt2 --padding yes": (2, "extra argument"),
    "estimate gpt2 --check": (2, "--gpu"),
    "estimate gpt2 --json --csv": (2, "--json and --csv exclude each other"),
    "explain nope": (4, "nope"),
    "compare nope": (4, "nope"),
    "compare gpt2 --methods lora,bogus": (2, "bogus"),
    "compare gpt2 --methods ,": (2, "--methods names none"),
    "compare gpt2 --method lora": (2, "--method"),
    "compare a.json b.json": (4, "a.json is no file"),
    "compare a.json b.json --methods full": (2, "--methods"),
    "models zzz": (4, "nothing matches 'zzz'"),
    "gpus zzz": (4, "nothing matches 'zzz'"),
    "methods zzz": (4, "nothing matches 'zzz'"),
    "doctor now": (2, "extra argument"),
}


def assert_refused(done, status, words):
    assert done.status == status, done
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert words in done.err


@pytest.mark.parametrize("line", REFUSED, ids=lambda line: line[:60])
def test_refused_in_one_line(run, line):
    """A wrong word is answered with its name, its value and what is allowed, in one line."""
    assert_refused(run(*line.split()), *REFUSED[line])


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x1b[31mred", "x" * 5000, "a\0b", "~nobody/x", "../../x/y/z"])
def test_odd_model_names_are_refused_in_one_line(run, name, monkeypatch):
    """Whatever a model is called, the refusal is one line without control signs."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = run("estimate", name)
    assert done.status in (2, 4)
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert done.err.rstrip("\n").isprintable()


CONFIGS = {
    "": "no valid JSON",
    "[1, 2]": "list",
    "{": "no valid JSON",
    '{"model_type": NaN}': "NaN",
    '{"a": 1}': "model_type",
    '{"model_type": "bogus"}': "bogus",
    '{"model_type": "llama", "hidden_size": -1}': "hidden_size",
    '{"model_type": "llama", "hidden_size": 1e400}': "hidden_size",
    "[" * 100_000: "config",
}


@pytest.mark.parametrize("text", CONFIGS, ids=lambda text: text[:30])
def test_unusable_configs_are_refused_in_one_line(run, tmp_path, text):
    """A config that cannot be used is refused with its name and the reason."""
    path = tmp_path / "config.json"
    path.write_text(text)
    assert_refused(run("estimate", str(path)), 2, CONFIGS[text])


SAVED = {
    "{}": "model is missing",
    "[]": "holds no request",
    "nonsense": "is no JSON",
    '{"model": "gpt2", "micro_batch": 0}': "micro_batch 0 is not allowed",
    '{"model": "gpt2", "alpha": NaN}': "is no JSON",
    '{"model": "gpt2", "alpha": 1e400}': "alpha",
    '{"model": "gpt2", "colour": 1}': "colour is no field",
    '{"model": "gpt2", "seq_len": "many"}': "seq_len",
    '{"request": []}': "holds no request",
}


@pytest.mark.parametrize("text", SAVED)
def test_unusable_saved_requests_are_refused_in_one_line(run, tmp_path, text):
    """A saved request that cannot be used is refused with its file, field and what is allowed."""
    path = tmp_path / "saved.json"
    path.write_text(text)
    assert_refused(run("compare", str(path), str(path)), 2, SAVED[text])


def test_a_folder_is_no_saved_request(run, tmp_path):
    """What the system refuses to read is told in one line as well."""
    done = run("compare", str(tmp_path), str(tmp_path))
    assert_refused(done, 2, "directory")


def test_an_unexpected_error_is_one_line(run, monkeypatch):
    """Whatever goes wrong inside, no traceback is shown unless PEFTPLAN_DEBUG asks for it."""
    from peftplan import planner

    def fail(request):
        raise ZeroDivisionError("a\nbug")

    monkeypatch.setattr(planner, "estimate", fail)
    assert_refused(run("estimate", "gpt2"), 2, "unexpected ZeroDivisionError: a bug")
    monkeypatch.setenv("PEFTPLAN_DEBUG", "1")
    done = run("estimate", "gpt2")
    assert done.status == 2
    assert "Traceback" in done.err


def test_an_interrupt_is_quiet(run, monkeypatch):
    """Ctrl-C ends with 130 and says nothing."""
    from peftplan import planner

    def interrupt(request):
        raise KeyboardInterrupt

    monkeypatch.setattr(planner, "estimate", interrupt)
    assert run("estimate", "gpt2") == (130, "", "")


def test_main_takes_any_sequence_of_words(capsys):
    """`main` returns the status; the words may be any sequence."""
    assert main(("methods", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["rows"]
