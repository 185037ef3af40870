"""The reference trace: the real libraries' training step on fake tensors, run where it is at hand.

`RECORDED` keeps its answers, so that the comparison needs neither it nor torch; `record.py` makes more.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftplan import Report, Request, estimate
from peftplan.catalog import find_model

HERE = Path(__file__).parent
RECORDED = HERE / "recorded.jsonl"
PROTOTYPE = HERE.parents[2] / "shared" / "prototype" / "trace"
LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")


@dataclass(frozen=True)
class Case:
    """A run of a model cut to a few layers, and what the reference trace said of it."""

    number: int
    model: str
    layers: int
    request: dict[str, Any]
    answer: dict[str, Any]

    def config(self) -> dict[str, Any]:
        """The model's config with the number of layers changed."""
        record = find_model(self.model)
        assert record is not None
        return shallow(record.config, self.layers)

    def family(self) -> str:
        """The model_type of the text tower."""
        return str(self.config()["model_type"])

    def report(self) -> Report:
        """peftplan's own answer."""
        return estimate(Request(model=self.config(), **self.request))

    def label(self) -> str:
        """A name for the test."""
        return f"{self.number}-{self.family()}-{self.request['method']}"


def shallow(config: Any, layers: int) -> dict[str, Any]:
    """A config with `layers` layers; of a vision-language model, its text tower."""
    cut: dict[str, Any] = deepcopy(dict(config))
    if isinstance(cut.get("text_config"), dict):
        cut = cut["text_config"]
        cut.setdefault("architectures", ["Gemma3ForCausalLM"])
    for key in LAYER_KEYS:
        if key in cut:
            cut[key] = layers
    if isinstance(cut.get("layer_types"), list):
        cut["layer_types"] = cut["layer_types"][:layers]
    return cut


def recorded() -> list[Case]:
    """Every recorded case."""
    lines = RECORDED.read_text(encoding="utf-8").splitlines()
    return [Case(**json.loads(line)) for line in lines]


def errors(case: Case, report: Report) -> dict[str, float]:
    """Relative errors of the three predicted figures, and byte differences of the resident state."""
    memory, answer = report.memory, case.answer
    resident = memory.resident
    return {
        "activations": memory.activations_bytes / answer["activations"] - 1,
        "allocated": memory.peak_allocated_bytes / answer["allocated"] - 1,
        "reserved": memory.peak_reserved_bytes / answer["reserved"] - 1,
        "weights": resident.weights + resident.adapters - answer["weights"],
        "gradients": resident.gradients - answer["gradients"],
        "optimizer_states": resident.optimizer_states - answer["optimizer_states"],
        "trainable": report.method.num_trainable_params - answer["trainable"],
    }


def prototype_runner() -> Any:
    """The reference trace's runner module; ImportError where it or its libraries are missing."""
    if not (PROTOTYPE / "runner.py").exists():
        raise ImportError("the reference trace is not at hand")
    if str(PROTOTYPE) not in sys.path:
        sys.path.insert(0, str(PROTOTYPE))
    import runner  # type: ignore[import-not-found]

    return runner


def trace(config: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Run the reference trace on a case and return the figures that are compared."""
    runner = prototype_runner()
    torch = runner.torch
    formats = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    filled = Request(model=config, **request)
    full = filled.method == "full"
    precision = filled.precision or ("bf16" if full else "bf16-mixed")
    weights = {"fp32": "fp32", "fp16": "fp16"}.get(precision, "bf16") if full else "bf16"
    if full and precision.endswith("-mixed"):
        weights = "fp32"
    words = {"attention": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    targets: Any = filled.targets
    if isinstance(targets, str) and targets != "all-linear":
        targets = words.get(targets) or targets.split(",")
    adapter = None if filled.adapter_dtype == "fp32" else formats[filled.adapter_dtype]
    job = runner.Job(
        "case",
        filled.method,
        filled.checkpointing,
        batch=filled.micro_batch,
        seq=filled.seq_len,
        dtype=formats[weights],
        adapter_dtype=adapter,
        autocast=precision.endswith("-mixed"),
        optim="fused" if filled.optimizer == "adamw-fused" else "foreach",
        rank=filled.rank,
        targets=targets,
        dropout=filled.dropout,
        kbit_prepare=filled.kbit_prepare is not False,
        attn=filled.attention,
        hf=deepcopy(config),
    )
    found = runner.run(job)
    return {
        "weights": found["params"],
        "trainable": found["trainable"],
        "gradients": found["grads"],
        "optimizer_states": found["optim"],
        "activations": found["saved_act"],
        "requested": found["peak_requested"],
        "allocated": found["peak_alloc"],
        "reserved": found["peak_reserved"],
        "where": found["peak_where"][0],
    }


def by_method(cases: Iterator[tuple[Case, dict[str, float]]]) -> dict[str, list[dict[str, float]]]:
    """Errors grouped by method."""
    groups: dict[str, list[dict[str, float]]] = {}
    for case, found in cases:
        groups.setdefault(case.request["method"], []).append(found)
    return groups
