"""A peft config for any method: what was asked for under the config class's own names, the rest peft's defaults.

A request speaks of rank, alpha, dropout and targets. Each config class has some of these under names of its own;
what it has no field for does not apply to the method. A field that peft demands and nobody states takes a value
from `_DEMANDED`, and a note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What peft demands and gives no default for: lengths of prompts as in peft's own examples, the AdaLoRA schedule
# as long as a short run, a handful of new tokens. None of these but the lengths changes what is allocated.
_DEMANDED: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 1000},
    "ADAPTION_PROMPT": {"adapter_len": 10, "adapter_layers": 30},
    "CARTRIDGE": {"num_virtual_tokens": 20},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 20},
    "PREFIX_TUNING": {"num_virtual_tokens": 20},
    "PROMPT_TUNING": {"num_virtual_tokens": 20},
    "P_TUNING": {"num_virtual_tokens": 20},
    "CPT": {
        "cpt_token_ids": list(range(20)),
        "cpt_mask": [1] * 20,
        "cpt_tokens_type_mask": [1] * 20,
    },
    "TRAINABLE_TOKENS": {"token_indices": list(range(16))},
}
# Methods whose targets are not the linears that a request names: peft's own choice for the family stands.
_OWN_TARGETS = ("ADAPTION_PROMPT", "BEFT", "IA3", "LN_TUNING", "OSF", "SHADOW", "TRAINABLE_TOKENS")
# `r` is no rank here: with it, `oft_block_size` would have to be zero, and Super-Tuning would be its hybrid.
_OWN_RANK = ("OFT", "SUPERTUNING")
_RANKS = ("r", "rank")
_ALPHAS = ("lora_alpha", "alpha")
_MOST_LAYERS = "adapter_layers"
# Initialisations of LoRA that leave weights as they are.
_PLAIN_INITS = (True, False, "gaussian", "orthogonal")


def fill(
    kind: str, config_class: Any, stated: Mapping[str, Any], hints: Mapping[str, Any], num_layers: int
) -> tuple[dict[str, Any], list[str]]:
    """The fields of a config, and notes on what was assumed.

    `stated` are fields by peft's names, which stand as they are; `hints` are a request's rank, alpha, dropout,
    targets, bias and modules_to_save, in peftplan's words.
    """
    known = config_class.__dataclass_fields__
    filled = {name: value for name, value in _hinted(kind, hints).items() if name in known}
    filled.update(stated)
    demanded = {name: value for name, value in _DEMANDED.get(kind, {}).items() if name not in filled}
    if _MOST_LAYERS in demanded:
        demanded[_MOST_LAYERS] = min(demanded[_MOST_LAYERS], num_layers)
    init = filled.get("init_lora_weights", True)
    notes = []
    if init not in _PLAIN_INITS:
        filled["init_lora_weights"] = True
        notes.append(
            f"init_lora_weights={init!r} computes on weights, and a trace has none: peft's default is taken"
        )
    notes += [f"peft demands {name} for {kind.lower()}: {_short(value)} taken" for name, value in demanded.items()]
    return {**demanded, **filled}, notes


def _hinted(kind: str, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Hints under every name that some config class has for them."""
    found: dict[str, Any] = {}
    rank, alpha, dropout = hints.get("rank"), hints.get("alpha"), hints.get("dropout")
    if rank is not None and kind not in _OWN_RANK:
        found.update(dict.fromkeys(_RANKS, rank))
        # AdaLoRA starts half as wide again as it ends, as its defaults do
        found.update(target_r=rank, init_r=rank + rank // 2)
    if alpha is not None and kind not in _OWN_RANK:
        found.update(dict.fromkeys((*_ALPHAS, f"{kind.lower()}_alpha"), alpha))
    if dropout is not None:
        found.update({"lora_dropout": dropout, f"{kind.lower()}_dropout": dropout})
    targets = hints.get("targets")
    if targets is not None and (kind not in _OWN_TARGETS or targets != "all-linear"):
        found["target_modules"] = targets
    found["progressbar"] = False
    for name in ("bias", "modules_to_save"):
        if hints.get(name) not in (None, "none", []):
            found[name] = hints[name]
    return found


def _short(value: Any) -> str:
    return f"{value[0]} to {value[-1]}" if isinstance(value, list) else str(value)
