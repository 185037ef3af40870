"""Older library releases beside the installed ones: folders made by pip, that a child process finds first.

`python tests/conformance/overlays.py` traces the cases below under each set of releases and writes
versions.jsonl; PEFTPLAN_OVERLAYS names a folder in which the releases are kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cases import Case, answer_of
from tracing import traced

from peftplan.errors import PeftplanError
from peftplan.planner import estimate

RECORDED = Path(__file__).parent / "versions.jsonl"
ROOT = Path(__file__).parents[2]
RELEASES: tuple[dict[str, str], ...] = (
    {"transformers": "5.0.0", "peft": "0.18.1", "bitsandbytes": "0.49.2"},
    {"transformers": "4.57.6", "peft": "0.17.1", "bitsandbytes": "0.48.2"},
    {"transformers": "4.51.3", "peft": "0.15.2", "bitsandbytes": "0.47.0"},
    {"transformers": "4.46.3", "peft": "0.13.2", "bitsandbytes": "0.46.1"},
)
MODELS = {
    "HuggingFaceTB/SmolLM2-360M": 3,
    "mistralai/Mistral-7B-v0.1": 2,
    "Qwen/Qwen2.5-0.5B": 2,
    "google/gemma-2b": 2,
    "google/gemma-2-2b": 2,
    "microsoft/Phi-3-mini-4k-instruct": 2,
    "ibm-granite/granite-3.1-2b-base": 2,
    "openai-community/gpt2": 2,
    "EleutherAI/pythia-160m": 2,
    "facebook/opt-125m": 2,
    "microsoft/phi-1_5": 2,
    "tiiuae/falcon-7b": 2,
    "bigscience/bloom-560m": 2,
    "mistralai/Mixtral-8x7B-v0.1": 1,
}
REQUESTS: tuple[dict[str, Any], ...] = (
    {"method": "full", "micro_batch": 1, "seq_len": 300, "checkpointing": True},
    {"method": "lora", "micro_batch": 2, "seq_len": 384, "checkpointing": False},
    {"method": "qlora", "micro_batch": 2, "seq_len": 256, "checkpointing": True},
    {"method": "lora", "micro_batch": 2, "seq_len": 200, "checkpointing": True, "attention": "eager"},
)


class NotInstalled(Exception):
    """pip could not put a set of releases together."""


def cases_of(releases: dict[str, str]) -> list[Case]:
    """Every model and request under these releases, without answers."""
    drawn = [(model, layers, request) for model, layers in MODELS.items() for request in REQUESTS]
    return [
        Case(number, model, layers, {**request, **releases}, {})
        for number, (model, layers, request) in enumerate(drawn)
    ]


def overlay(releases: dict[str, str]) -> Path:
    """A folder with these releases, made once; raises NotInstalled with pip's last line."""
    base = Path(os.environ.get("PEFTPLAN_OVERLAYS") or Path(tempfile.gettempdir()) / "peftplan-overlays")
    folder = base / "-".join(releases.values())
    if (folder / "complete").exists():
        return folder
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(folder)]
    wanted = [f"{name}=={release}" for name, release in releases.items()]
    for words in (wanted[:1], ["--no-deps", *wanted[1:]]):  # torch stays the installed one
        done = subprocess.run([*pip, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotInstalled((done.stderr.strip().splitlines() or ["pip failed"])[-1])
    (folder / "complete").touch()
    return folder


def traced_under(releases: dict[str, str], cases: list[Case]) -> list[Case]:
    """The cases with the trace's answers, from a child that finds these releases first; less what is refused."""
    paths = [overlay(releases), ROOT, Path(__file__).parent]
    done = subprocess.run(
        [sys.executable, __file__, "--child"],
        input=json.dumps([asdict(case) for case in cases]),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
    )
    return [Case(**line) for line in json.loads(done.stdout.splitlines()[-1])]


def differences(case: Case) -> dict[str, int]:
    """What the closed form says of a case less what the trace said, in bytes; what is equal is left out."""
    mine, other = answer_of(estimate(case.asked())), case.answer
    found = {name: mine[name] - other[name] for name in ("activations", "weights", "trainable")}
    found.update({name: mine["moments"][name] - other["moments"][name] for name in other["moments"]})
    return {name: error for name, error in found.items() if error}


def recorded() -> list[Case]:
    """Every recorded case."""
    return [Case(**json.loads(line)) for line in RECORDED.read_text(encoding="utf-8").splitlines()]


def _child() -> None:
    asked = [Case(**fields) for fields in json.loads(sys.stdin.read())]
    answered = [asdict(case) for case in traced(asked) if not isinstance(case, PeftplanError)]
    print(json.dumps(answered))


def _record() -> None:
    lines = []
    for releases in RELEASES:
        for case in traced_under(releases, cases_of(releases)):
            lines.append(json.dumps(asdict(case)) + "\n")
            print(*releases.values(), case.label(), differences(case), flush=True)
    RECORDED.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        _child()
    else:
        _record()
