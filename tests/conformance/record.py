"""Ask the reference trace random questions and keep its answers: python record.py COUNT SEED [FAMILY,...].

Appends to recorded.jsonl. Needs the reference trace with torch, transformers, peft and bitsandbytes.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

from reference import RECORDED, Case, shallow, trace

from peftplan.catalog import all_models

DECODERS = {
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3", "phi3"),
    *("granite", "gpt2", "gpt_neox", "gptj", "opt", "phi", "falcon", "bloom"),
}
EAGER_ONLY = {"gemma2", "bloom", "gptj"}
NAMED = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "granite"}


def draw(rng: random.Random, families: set[str]) -> tuple[str, int, dict[str, Any]]:
    """A model, a number of layers and a request."""
    # a model's size does not change the mechanism, but a huge vocabulary times width takes time
    pool = [r for r in all_models() if r.config["model_type"] in families]
    family = rng.choice(sorted({r.config["model_type"] for r in pool}))
    record = rng.choice([r for r in pool if r.config["model_type"] == family])
    method = rng.choice(["full", "lora", "lora", "qlora", "qlora", "qlora"])
    text = record.config.get("text_config", record.config)
    limit = text.get("max_position_embeddings") or text.get("n_positions") or 2048
    targets = ["all-linear", "all-linear"]
    if family in NAMED:
        targets += ["attention", "q_proj,v_proj"]
    precisions = ["bf16-mixed", "bf16-mixed", "bf16"]
    if method == "full":
        precisions = ["bf16", "bf16", "bf16-mixed", "fp32"]
    request: dict[str, Any] = {
        "method": method,
        "micro_batch": rng.choice([1, 1, 2, 4]),
        "seq_len": min(limit, rng.choice([384, 512, 1024, 2048, 4096])),
        "rank": rng.choice([4, 8, 16, 32, 64]),
        "dropout": rng.choice([0.0, 0.0, 0.05]) if method != "full" else 0.0,
        "targets": rng.choice(targets),
        "precision": rng.choice(precisions),
        "checkpointing": rng.random() < 0.5,
        "optimizer": rng.choice(["adamw", "adamw", "adamw-fused"]),
    }
    if method != "full" and rng.random() < 0.15:
        request["adapter_dtype"] = "bf16"
    if method == "qlora" and rng.random() < 0.15:
        request["kbit_prepare"] = False
    if family in EAGER_ONLY or rng.random() < 0.12:
        request["attention"] = "eager"
        request["seq_len"] = min(request["seq_len"], 1024)
    return record.id, rng.choice([2, 3, 4, 6]), request


def main() -> None:
    """Record COUNT cases drawn with SEED."""
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    families = set(sys.argv[3].split(",")) if len(sys.argv) > 3 else DECODERS
    from peftplan.catalog import find_model

    rng = random.Random(seed)
    for number in range(count):
        model, layers, request = draw(rng, families)
        record = find_model(model)
        assert record is not None
        try:
            answer = trace(shallow(record.config, layers), request)
        except Exception as error:  # what the reference cannot run is no case
            print(f"skipped {model} {request}: {error!r:.150}", flush=True)
            continue
        case = Case(seed * 10_000 + number, model, layers, request, answer)
        with RECORDED.open("a", encoding="utf-8") as file:
            file.write(json.dumps(case.__dict__) + "\n")
        print(case.label(), answer["allocated"], flush=True)


if __name__ == "__main__":
    main()
