"""From the columns of a published table to a request: general rules, or the reason why a row is not comparable.

A rule looks at what a column says, not at who says it. Where a column is blank the row is set aside, unless
the blank can mean one thing only.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from peftplan.catalog import find_gpu, find_model
from peftplan.errors import shown
from peftplan.evidence.cells import SetAside, first_word, flag, needed, number, text_of, whole
from peftplan.evidence.libraries import version_fields
from peftplan.evidence.stacks import (
    FLOATS,
    Fields,
    adapter_format,
    heads_by_hand,
    is_reentrant,
    loop_fields,
    prepares_for_kbit,
    trl_fields,
)
from peftplan.evidence.tables import Row
from peftplan.methods import METHODS, Method
from peftplan.optimizers import OPTIMIZERS


def request_fields(row: Row) -> Fields:
    """The fields of a request that a row describes; raises SetAside."""
    fields: Fields = {}
    for rule in _RULES:
        fields.update(rule(row))
    return fields


# ---- model, card, shape


def _model(row: Row) -> Fields:
    name = needed(row, "model")
    record = find_model(name)
    if record is None:
        raise SetAside(f"model {shown(name)} is not in the catalogue")
    return {"model": record.id}


_BESIDE_THE_NAME = r"\b\d+ ?W\b|\b(?:power limited|HBM\d?e?)\b"


def gpu_key(words: str) -> str | None:
    """The catalogue's key for a card's name as tables write it; a size in brackets may be part of the name."""
    size = re.search(r"\(.*?\b(\d+) ?GB\b.*?\)", words)
    bare = re.sub(r"\(.*?\)", " ", words)
    for name in (f"{bare} {size[1]}GB" if size else bare, bare, re.sub(_BESIDE_THE_NAME, " ", bare)):
        record = find_gpu(" ".join(name.split()))
        if record is not None:
            return record.key
    return None


def _card(row: Row) -> Fields:
    count = whole(row, "n_gpus", 1)
    sharding = first_word(row.get("sharding", ""))
    if count > 1:
        raise SetAside(f"{count} GPUs ({row.get('sharding') or 'sharding not stated'}): not modelled yet")
    if sharding not in ("", "none", "no"):
        raise SetAside(f"sharding {shown(row['sharding'])} is not modelled yet")
    if first_word(row.get("cpu_offload", "")) not in ("", "none", "no", "false"):
        raise SetAside("offload to the host is not modelled yet")
    key = gpu_key(text_of(row, "gpu"))
    return {"gpu": key} if key else {}


def _shape(row: Row) -> Fields:
    known = first_word(row.get("shape_known", "exact"))
    if known not in ("exact", "near-exact"):
        raise SetAside(f"lengths vary: {_length_words(row)}")
    return {
        "micro_batch": whole(row, "micro_batch"),
        "seq_len": whole(row, "seq_len"),
        "grad_accum": whole(row, "grad_accum", 1),
    }


def _length_words(row: Row) -> str:
    words = text_of(row, "seq_len_kind") or "the length of a batch is not stated"
    return re.sub(r"\s+", " ", words)


# ---- method, adapter, storage


def _method(row: Row) -> Fields:
    words = needed(row, "method").lower()
    name, _, variant = re.sub(r"\(.*?\)", "", words).strip().replace("_", "-").partition("/")
    variant = variant.removeprefix("init-")
    fields: Fields = {"method": name}
    if variant == "rslora":
        fields["use_rslora"] = True
    elif variant in METHODS:
        fields["method"] = variant
    elif variant:
        raise SetAside(f"method {shown(words)} is not modelled yet")
    if fields["method"] not in METHODS:
        raise SetAside(f"method {shown(words)} is not modelled yet")
    return fields


_QUANT: dict[str, Fields] = {
    "none": {},
    "nf4": {"quant": "nf4", "double_quant": False},
    "nf4-dq": {"quant": "nf4", "double_quant": True},
    "fp4": {"quant": "fp4", "double_quant": False},
    "fp4-dq": {"quant": "fp4", "double_quant": True},
    "int8": {"quant": "int8"},
}


def _known(row: Row) -> Method:
    return METHODS[_method(row)["method"]]


def _storage(row: Row) -> Fields:
    word = first_word(row.get("quant_norm", "") or "none")
    if word not in _QUANT:
        raise SetAside(f"storage {word} is not modelled")
    fields = dict(_QUANT[word])
    if _quantised(row) and not fields:
        raise SetAside("qlora without a quantisation")
    if fields:
        fields["kbit_prepare"] = prepares_for_kbit(row)
        fields |= trl_fields(row, fields)
    return fields


def _quantised(row: Row) -> bool:
    return _known(row).default_quant is not None


def _adapter(row: Row) -> Fields:
    method = _known(row)
    if not method.frozen_base:
        return {}
    fields = adapter_format(row)
    if "rank" in method.takes and (method.default_rank is None or text_of(row, "lora_rank")):
        fields["rank"] = whole(row, "lora_rank")
    if "targets" in method.takes:
        fields["targets"] = _targets(row)
    dropout = number(row, "lora_dropout")
    if dropout is not None:
        fields["dropout"] = dropout
    alpha = number(row, "lora_alpha")
    if alpha:
        fields["alpha"] = alpha
    return fields


def _targets(row: Row) -> str | list[str]:
    words = needed(row, "target_modules")
    plain = re.sub(r"\(.*?\)", "", words).strip()
    if re.fullmatch(r"all[- ]linear", plain, re.IGNORECASE):
        return "all-linear"
    names = [name for name in re.split(r"[\s,]+", plain) if name]
    if not all(re.fullmatch(r"[\w.]+", name) for name in names):
        raise SetAside(f"target_modules {shown(words)} names no modules")
    return names


def _precision(row: Row) -> Fields:
    """The recipe: the format of the weights, and whether the forward pass runs under autocast.

    `compute fp16` names the format in which packed weights are multiplied, not an autocast.
    """
    base = FLOATS.get(first_word(needed(row, "base_dtype")))
    if base is None:
        raise SetAside(f"base_dtype {shown(row['base_dtype'])} is not modelled")
    words = needed(row, "mixed_precision") if row.get("mixed_precision", "").lower() != "none" else "none"
    word = first_word(words)
    mixed = FLOATS.get(word.removesuffix("-mixed"))
    if mixed is None and word not in ("none", "no", "compute"):
        raise SetAside(f"mixed_precision {shown(words)} is not modelled")
    if mixed is not None and re.search(r"params|fsdp|master", words, re.IGNORECASE):
        raise SetAside(f"mixed_precision {shown(words)} is not modelled yet")
    if _known(row).frozen_base:
        return {"base_dtype": base, "precision": f"{mixed}-mixed" if mixed in ("bf16", "fp16") else base}
    trained = FLOATS.get(first_word(row.get("trainable_dtype_effective", "")), base)
    if mixed in ("bf16", "fp16") and trained == "fp32":
        return {"precision": f"{mixed}-mixed"}
    return {"precision": trained}


# ---- how the step runs


_OPTIMIZERS = {
    "adamw": "adamw",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw-fused",
    "adamw_hf": "adamw",
    "adamw_8bit": "adamw-8bit",
    "adamw_bnb_8bit": "adamw-8bit",
    "paged_adamw_8bit": "paged-adamw-8bit",
    "paged_adamw_32bit": "paged-adamw",
    "paged_adamw": "paged-adamw",
}


def _optimizer(row: Row) -> Fields:
    words = needed(row, "optimizer")
    word = first_word(words)
    name = _OPTIMIZERS.get(word, word.replace("_", "-"))
    if re.search(r"\bpagedadamw\b", words, re.IGNORECASE):
        name = "paged-adamw"
    if name not in OPTIMIZERS:
        raise SetAside(f"optimizer {shown(words)} is not modelled")
    return {"optimizer": name}


def _checkpointing(row: Row) -> Fields:
    word = first_word(needed(row, "gc_norm")) if row.get("gc_norm", "").lower() != "none" else "none"
    if word not in ("full", "none"):
        raise SetAside(f"checkpointing {shown(word)} is not modelled")
    if word == "none":
        return {"checkpointing": False}
    return {"checkpointing": True, "use_reentrant": is_reentrant(row)}


_ATTENTION = {
    "flash_attention_2": "flash",
    "flash": "flash",
    "sdpa": "sdpa",
    "eager": "eager",
    "eager/model": "eager",
}


def _attention(row: Row) -> Fields:
    words = needed(row, "attn_impl")
    name = _ATTENTION.get(first_word(words))
    if name is None:
        raise SetAside(f"attn_impl {shown(words)} is not modelled")
    return {"attention": name}


def _loss(row: Row) -> Fields:
    words = row.get("fused_ce", "") or "none"
    word = first_word(words)
    if word in ("none", "no"):
        return {"loss": "standard"}
    if word == "liger":
        return {"loss": "fused"}
    if word == "foak":
        return {"loss": "standard"}
    raise SetAside(f"loss {shown(words)} is not modelled")


def _compiled(row: Row) -> Fields:
    if flag(row, "compile"):
        raise SetAside("torch.compile fuses operations, which is not modelled")
    return {}


# In the order in which they give their reason: what can never be compared first.
_RULES: tuple[Callable[[Row], Fields], ...] = (
    _method,
    _storage,
    _card,
    _model,
    loop_fields,
    _compiled,
    _shape,
    _adapter,
    _precision,
    _optimizer,
    _checkpointing,
    _attention,
    _loss,
    version_fields,
    heads_by_hand,
)
