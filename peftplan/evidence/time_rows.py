"""Published rows that carry a speed, as runs to predict: tokens per second of one GPU.

Rows of memory.csv name their settings; those of throughput.csv name few, and the rest is what their stacks do. A
stack with kernels of its own runs fused ones: for time that is an input, not another program. A row that implies
more flop than the card's peak is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from peftplan.catalog import find_gpu, find_model
from peftplan.errors import shown
from peftplan.evidence import comparison
from peftplan.evidence.cells import SetAside, first_word, flag, needed, number, text_of, whole
from peftplan.evidence.libraries import version_fields
from peftplan.evidence.mapping import gpu_key
from peftplan.evidence.stacks import Fields
from peftplan.evidence.tables import Row
from peftplan.methods import METHODS
from peftplan.request import Request

_FUSED = ("foak", "fast-kernels", "liger")
# What batches of varying length come to, where a batch holds samples of about one length.
_BUCKETED = re.compile(r"bucketed by length", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Stack:
    """What a stack does where a table does not say: fields of every run, of adapters, of packed bases; its day."""

    fields: Fields = field(default_factory=dict)
    adapters: Fields = field(default_factory=dict)
    packed: Fields = field(default_factory=dict)
    day: str = ""  # of its library releases


_STACKS = {
    "fms-acceleration": _Stack(
        {"loop": "trainer", "optimizer": "adamw", "use_reentrant": True},
        {"targets": ["q_proj", "k_proj", "v_proj", "o_proj"], "dropout": 0.1},
        {"trl_casts": True},
        "2025-02-07",
    ),
    "huggingface/peft": _Stack(
        {"keep_outputs": True, "precision": "bf16", "attention": "sdpa"},
        {"targets": ["q_proj", "v_proj"]},
        {},
        "2026-07-20",
    ),
    "torchtune": _Stack(
        {"precision": "bf16"}, {"adapter_dtype": "bf16", "rank": 8}, {"kbit_prepare": False}, "2024-11-08"
    ),
}


def _stack(row: Row) -> _Stack:
    source = row.get("source", "").lower()
    return next((stack for name, stack in _STACKS.items() if name in source), _Stack())


# Methods of peft beside those that a table's column names: `adalora/llama-3.2-3B-rank32` in the column kernels.
_EXPERIMENT = re.compile(r"^([a-z][\w-]*)/(.+)$", re.IGNORECASE)
_VARIANTS = re.compile(r"lorafa|bdlora|lora-?plus|pissa|corda|\b(?:dora|eva|bat|mini|mica)\b", re.IGNORECASE)


def speed(row: Row) -> float | None:
    """Tokens per second of one GPU, as a row of memory.csv states them."""
    if "per gpu" in row.get("tokens_per_s_scope", "").lower() or first_word(row.get("n_gpus", "")) in ("", "1"):
        return number(row, "tokens_per_s")
    return None


def timed_request(row: Row) -> Request:
    """A row of memory.csv as the run whose speed it states; raises SetAside."""
    row = {**row, **_typical_length(row)}
    fused = kernels_of(f"{row.get('framework_config', '')} {row.get('fused_ce', '')}")
    if flag(row, "compile"):
        fused, row = {"kernels": "compiled"}, {**row, "compile": ""}
    return _request({**comparison.fields_of(row), **fused})


def _typical_length(row: Row) -> dict[str, str]:
    """The mean length of batches whose rows are alike in length; others have no one length."""
    mean = number(row, "mean_tokens_per_sample")
    if first_word(row.get("shape_known", "")) == "distribution" and mean and _BUCKETED.search(row["seq_len_kind"]):
        return {"seq_len": str(round(mean)), "shape_known": "near-exact"}
    return {}


def kernels_of(words: str) -> Fields:
    """Fused kernels, where a stack's name says so."""
    if "compile" in words.lower():
        return {"kernels": "compiled"}
    return {"kernels": "fused"} if any(word in words.lower() for word in _FUSED) else {}


def throughput_request(row: Row) -> Request:
    """A row of throughput.csv as the run whose speed it states; raises SetAside."""
    hfu = number(row, "hfu")
    if hfu is not None and hfu > 1:
        raise SetAside(impossible(row.get("gpu", ""), hfu))
    fields: Fields = {}
    known = comparison.settings(row.get("kernels", ""))
    if known:
        row = {**row, "method": known["method"], "kernels": ""}
    for rule in (_method, _cards, _model, _shape, _kernels, _adapters, _releases):
        fields |= rule(row)
    return _request(fields | known)


def impossible(gpu: str, hfu: float) -> str:
    """Why a measured speed is none: it takes more flop a second than the card's peak."""
    return f"implies {hfu:.2f} of the peak of {gpu}, and no card computes above its peak: another card was measured"


def _request(fields: Mapping[str, object]) -> Request:
    try:
        return Request(**fields)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SetAside(f"{first['loc'][0]} {first['input']!r} is out of bounds") from None


def _method(row: Row) -> Fields:
    name = first_word(needed(row, "method"))
    found = _EXPERIMENT.match(row.get("kernels", ""))
    if found is not None and _plain_name(found[1]) != name:
        name = found[1].lower()
    elif found is not None and _VARIANTS.search(found[2]):
        name = f"{name} ({found[2]})"
    if name not in METHODS:
        raise SetAside(f"method {shown(name)} is not modelled yet")
    return {"method": name, "use_rslora": "rslora" in row.get("kernels", "")}


def _plain_name(words: str) -> str:
    return "full" if words.lower().startswith("full") else words.lower()


def _cards(row: Row) -> Fields:
    count = whole(row, "n_gpus", 1)
    words = f"{row.get('kernels', '')} {row.get('note', '')}"
    if count > 1 and re.search(r"fsdp|shard|zero|deepspeed", words, re.IGNORECASE):
        raise SetAside(f"{count} GPUs that share a model's state: not modelled yet")
    if count > 1 and not re.search(r"\bddp\b", words, re.IGNORECASE):
        raise SetAside(f"{count} GPUs, and how they share a step is not stated")
    key = gpu_key(needed(row, "gpu"))
    if key is None:
        raise SetAside(f"gpu {shown(row['gpu'])} is not in the catalogue")
    return {"gpu": key, "gpus": count}


def _model(row: Row) -> Fields:
    record = find_model(needed(row, "model"))
    if record is None:
        raise SetAside(f"model {shown(row['model'])} is not in the catalogue")
    return {"model": record.id}


def _shape(row: Row) -> Fields:
    checkpointing = flag(row, "grad_ckpt")
    if checkpointing is None:
        raise SetAside("grad_ckpt is not stated")
    card = find_gpu(gpu_key(row.get("gpu", "")) or "")
    capability = card.compute_capability if card is not None else None
    return {
        "micro_batch": whole(row, "micro_batch"),
        "seq_len": whole(row, "seq_len"),
        "checkpointing": checkpointing,
        "attention": "flash" if capability is not None and capability >= (8, 0) else "sdpa",
    }


def _kernels(row: Row) -> Fields:
    words = f"{row.get('kernels', '')} {row.get('note', '')}"
    if "scattermoe" in words:
        raise SetAside("ScatterMoE kernels are not modelled")
    if re.search(r"optimi[sz]er.in.b(ack)?wd?", words, re.IGNORECASE) and first_word(row["method"]) == "full":
        raise SetAside("the optimizer runs within backward, which is not modelled")
    fields = kernels_of(words)
    if "liger" in words.lower():
        fields |= {"loss": "fused"}
    if "chunkedce" in words.lower():  # in torchtune's table flags add up: the loss in chunks, and compiled
        fields |= {"loss": "chunked", "kernels": "compiled"}
    if "torchtune" in row.get("source", "").lower() and re.search(r"lora", text_of(row, "kernels"), re.IGNORECASE):
        fields |= {"loss": "chunked", "kernels": "compiled"}
    return fields


def _adapters(row: Row) -> Fields:
    """Rank and targets; a base that a plugin packs itself is not prepared by peft."""
    method, stack = METHODS[first_word(row["method"])], _stack(row)
    fields = dict(stack.fields)
    if not flag(row, "grad_ckpt"):
        fields.pop("use_reentrant", None)
    if not method.frozen_base:
        return fields
    words = f"{row.get('kernels', '')} {row.get('note', '')}"
    fields |= {"rank": 16, "targets": "all-linear", **stack.adapters}
    if rank := re.search(r"\b(?:r=|rank)(\d+)", words):
        fields["rank"] = int(rank[1])
    if named := re.search(r"\btarget[ -](?:(mlp)\b|((?:\w+,)*\w+))", words):
        fields["targets"] = "mlp" if named[1] else [f"{name}_proj" for name in named[2].split(",")]
    if method.default_quant is not None:
        fields |= stack.packed
        if "accelerated-peft" in words:
            fields |= {"kbit_prepare": False, "trl_casts": False}
    return fields


def _releases(row: Row) -> Fields:
    """The library releases of the stack's day; the reference's where no day is known."""
    day = _stack(row).day
    return dict(version_fields({"commit_date": day, "software": ""})) if day else {}
