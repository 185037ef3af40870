"""Random runs of shallow models, and what both engines say of them.

`recorded.jsonl` keeps the traced answers, so that the closed form is held to them where no torch is
installed; `record.py` renews it, and test_conformance.py runs the same cases again.
"""

from __future__ import annotations

import json
import random
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftplan import Report, Request
from peftplan.arch import FAMILIES
from peftplan.catalog import all_models, find_model
from peftplan.planner import estimate

RECORDED = Path(__file__).parent / "recorded.jsonl"
LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers")
# Families whose configs users bring most, drawn twice as often.
COMMON = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3")
NAMED_TARGETS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "granite")
GPUS = ("a100-80", "h100-sxm", "rtx-4090", "t4", "l4", "b200-sxm", "rtx-5090")
FIGURES = ("activations", "allocated", "reserved")
STATE = ("weights", "gradients", "optimizer_states", "trainable")


@dataclass(frozen=True)
class Case:
    """A run of a catalogue model cut to a few layers, and what the trace said of it."""

    number: int
    model: str
    layers: int
    request: dict[str, Any]
    answer: dict[str, Any]

    def asked(self) -> Request:
        """The request, its model a config of few layers."""
        record = find_model(self.model)
        assert record is not None
        return Request(model=shallow(record.config, self.layers), **self.request)

    def family(self) -> str:
        """The model_type of the text tower."""
        record = find_model(self.model)
        assert record is not None
        return str(shallow(record.config, self.layers)["model_type"])

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


def draw(rng: random.Random) -> tuple[str, int, dict[str, Any]]:
    """A model, a number of layers and a request; not every draw is a run that can be."""
    records = [record for record in all_models() if family_of(record.config) in FAMILIES]
    families = sorted({family_of(record.config) for record in records})
    family = rng.choice([*families, *(name for name in COMMON if name in families)])
    record = rng.choice([record for record in records if family_of(record.config) == family])
    text = record.config.get("text_config", record.config)
    limit = text.get("max_position_embeddings") or text.get("n_positions") or 2048
    method = rng.choice(["full", "lora", "lora", "qlora", "qlora"])
    request: dict[str, Any] = {
        "method": method,
        "micro_batch": rng.choice([1, 1, 2, 3, 4]),
        "seq_len": min(limit, rng.choice([131, 384, 512, 1000, 1024, 2048])),
        "checkpointing": rng.random() < 0.5,
        "optimizer": rng.choice(
            ["adamw", "adamw", "adamw-fused", "adamw-8bit", "sgd-momentum", "adafactor", "lion"]
        ),
    }
    if method == "full":
        request["precision"] = rng.choice(["bf16", "bf16", "bf16-mixed", "bf16-master", "fp32", "fp16"])
    else:
        request.update(_adapter_options(rng, family, method))
    if rng.random() < 0.15:
        request["attention"] = "eager"
        request["seq_len"] = min(request["seq_len"], 512)
    rare: list[tuple[str, Any]] = [
        ("padding", True),
        ("grad_accum", 4),
        ("loop", "trainer"),
        ("loss", "chunked"),
        ("gpu", rng.choice(GPUS)),
    ]
    if request["checkpointing"]:
        rare.append(("use_reentrant", True))
    request.update((name, value) for name, value in rare if rng.random() < 0.1)
    return record.id, rng.choice([2, 2, 3, 4]), request


def _adapter_options(rng: random.Random, family: str, method: str) -> dict[str, Any]:
    targets = ["all-linear", "all-linear", "attention"]
    if family in NAMED_TARGETS:
        targets += ["mlp", "q_proj,v_proj"]
    options: dict[str, Any] = {
        "rank": rng.choice([4, 8, 16, 32, 64]),
        "dropout": rng.choice([0.0, 0.0, 0.05]),
        "targets": rng.choice(targets),
        "precision": rng.choice(["bf16-mixed", "bf16-mixed", "bf16", "fp16-mixed"]),
    }
    if rng.random() < 0.15:
        options["adapter_dtype"] = "bf16"
    if rng.random() < 0.1:
        options["base_dtype"] = "fp32"
    if method == "qlora":
        options["quant"] = rng.choice(["nf4", "nf4", "nf4", "fp4", "int8"])
        options["double_quant"] = rng.random() < 0.8
        options["kbit_prepare"] = rng.random() < 0.8
    return options


def family_of(config: Any) -> str:
    """The model_type of a config's text tower."""
    return str(config.get("text_config", config).get("model_type", ""))


def recorded() -> list[Case]:
    """Every recorded case."""
    lines = RECORDED.read_text(encoding="utf-8").splitlines()
    return [Case(**json.loads(line)) for line in lines]


def write_recorded(cases: list[Case]) -> None:
    """Replace the recorded cases."""
    text = "".join(json.dumps(asdict(case)) + "\n" for case in sorted(cases, key=lambda case: case.number))
    RECORDED.write_text(text, encoding="utf-8")


def answer_of(report: Report) -> dict[str, Any]:
    """The figures of an answer that are compared."""
    memory = report.memory
    return {
        "weights": memory.resident.weights + memory.resident.adapters + memory.resident.master_weights,
        "gradients": memory.resident.gradients,
        "optimizer_states": memory.resident.optimizer_states,
        "trainable": report.method.num_trainable_params,
        "activations": memory.activations_bytes,
        "allocated": memory.peak_allocated_bytes,
        "reserved": memory.peak_reserved_bytes,
        "peak_moment": memory.peak_moment,
        "moments": dict(memory.moments),
    }


def errors(case: Case) -> dict[str, float]:
    """The closed form against the trace: relative errors of figures, byte differences of resident state."""
    mine, traced = answer_of(estimate(case.asked())), case.answer
    found: dict[str, float] = {name: mine[name] / traced[name] - 1 for name in FIGURES}
    found.update({name: mine[name] - traced[name] for name in STATE})
    return found
