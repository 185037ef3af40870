"""What a training stack does beyond what a table's columns name: its loop, its casts, its kernels.

Known from the published code of the stacks, by words in the columns `framework`, `framework_config` and `notes`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from peftplan.catalog import find_model
from peftplan.errors import shown
from peftplan.evidence.cells import SetAside, first_word
from peftplan.evidence.libraries import version_fields
from peftplan.evidence.tables import Row
from peftplan.versions import parse

Fields = dict[str, Any]

FLOATS = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16", "fp32": "fp32", "float32": "fp32"}


def loop_fields(row: Row) -> Fields:
    """Trainer drops the model's output before backward; a loop written out names it, as examples do."""
    words = row.get("framework", "").lower()
    if re.search(r"trainer|trl|swift|axolotl|llama-?factory", words):
        return {"loop": "trainer"}
    if "transformers" in words or "peft" in words:
        return {"loop": "plain", "keep_outputs": True}
    raise SetAside(f"framework {shown(row.get('framework', ''))} has a model or a loop of its own")


def is_reentrant(row: Row) -> bool:
    """The kind of checkpointing that a stack asks for: Trainer named none up to transformers 4, torch's own."""
    words = row.get("notes", "").lower()
    if "non-reentrant" in words or "re-entrant" in words:
        return "non-reentrant" not in words
    return loop_fields(row)["loop"] == "trainer" and version_fields(row).get("transformers", "5").startswith("4.")


# ---- storage and adapters


def prepares_for_kbit(row: Row) -> bool:
    """Whether peft's prepare_model_for_kbit_training ran: the stack's notes say so, or that it did not."""
    return "without fp32 upcast" not in row.get("notes", "")


def trl_fields(row: Row, fields: Fields) -> Fields:
    """TRL's SFTTrainer casts what it prepared itself: a 4-bit model under bf16."""
    trains = "sfttrainer" in row.get("framework", "").lower()
    narrow = first_word(row.get("mixed_precision", "")) == "bf16"
    if not (trains and narrow and fields["kbit_prepare"] and fields["quant"] in ("nf4", "fp4")):
        return {}
    return {"trl_casts": True}


def adapter_format(row: Row) -> Fields:
    """Adapters are fp32 since peft 0.12, before it in the format of the weight beside them, if it has one."""
    widens = parse(version_fields(row).get("peft", "0.21")) >= (0, 12, 0)
    if widens or first_word(row.get("quant_norm", "") or "none") != "none":
        return {}
    return {"adapter_dtype": FLOATS.get(first_word(row.get("base_dtype", "")), "fp32")}


# ---- kernels


def heads_by_hand(row: Row) -> Fields:
    """A script that repeats grouped heads itself and pins the kernel does what torch before 2.5 made necessary."""
    by_hand = "scripts/measure.py" in row.get("framework", "") and first_word(row.get("attn_impl", "")) == "sdpa"
    return {"torch": "2.4"} if by_hand else {}


_FOREIGN = {
    "foak": "Triton kernels",
    "liger": "Liger kernels",
    "padding-free": "padding-free batches",
    "autogptq": "GPTQ kernels",
    "scattermoe": "ScatterMoE kernels",
    "multipack": "padding-free batches",
}


def _former_bigcode(row: Row) -> bool:
    record = find_model(row.get("model", ""))
    if record is None or record.config["model_type"] != "gpt_bigcode" or row.get("gc_norm") != "full":
        return False
    return parse(version_fields(row).get("transformers", "5.23")) < (4, 54, 0)


# What runs code that peftplan does not know: (part of the framework's name, what is different, when).
_UNKNOWN_CODE: tuple[tuple[str, str, Callable[[Row], bool]], ...] = (
    ("", "gpt_bigcode before transformers 4.54, which keeps its cache under checkpointing", _former_bigcode),
)


def foreign_kernels(row: Row) -> str:
    """The group of a row that a stack with kernels of its own ran; empty for a stock one."""
    words = f"{row.get('framework_config', '')} {row.get('fused_ce', '')}".lower()
    found = [text for word, text in _FOREIGN.items() if word in words]
    found += [text for name, text, concerns in _UNKNOWN_CODE if name in row.get("framework", "") and concerns(row)]
    return "; ".join(dict.fromkeys(found))
