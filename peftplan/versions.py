"""Library versions: which are known, and what changed when, as a table of facts.

Each `Change` says in which release a flag of `Behaviour` took its later value and what it was before; the
newest stand first among those of one flag. Programs ask flags, and this is the only place that compares versions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

from peftplan.errors import BadInput
from peftplan.specs.behaviour import REFERENCE as REFERENCE_BEHAVIOUR
from peftplan.specs.behaviour import Behaviour

LATEST = 9999  # what a part that is left out stands for: "4.46" is its last release
_NUMBER = re.compile(r"v?(\d{1,4})(?:\.(\d{1,4}))?(?:\.(\d{1,4}))?(?:[.+\-]?(?:a|b|rc|dev|post|git|cu|cpu)[\w.]*)?")

Release = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Versions:
    """The releases that an answer describes, as they were written."""

    torch: str = "2.13"
    transformers: str = "5.23"
    peft: str = "0.21"
    bitsandbytes: str = "0.50"

    def by_name(self) -> dict[str, str]:
        """Library -> version."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


REFERENCE = Versions()
LIBRARIES = tuple(REFERENCE.by_name())
# The oldest release whose behaviour was read from its source; the newest are the reference's.
OLDEST = {"torch": "2.1", "transformers": "4.39", "peft": "0.11", "bitsandbytes": "0.43"}


@dataclass(frozen=True, slots=True)
class Change:
    """A flag's value before one release of a library, in some families or (none named) in all."""

    flag: str
    library: str
    since: str
    before: Any
    source: str  # the file that changed
    what: str
    families: tuple[str, ...] = ()


_TF = "transformers"
_LLAMA = "modeling_llama.py"
_GEMMA = ("gemma", "gemma2")
_LATE = ("mistral", "gemma", "gemma2", "phi3", "mixtral")  # took the model's rotary tables late
_LLAMA_LIKE = ("llama", "qwen2", "granite", *_LATE)
_RETURNING = (*_LLAMA_LIKE, "phi", "gpt2")
_CACHE_POSITIONS = ("opt", "bloom", "bert", "roberta", "t5")
_LOOPED = ("mixtral", "qwen2_moe", "qwen3_moe")
_REPEATING = ("mistral", "mixtral", "phi3", "qwen2")  # repeated heads before flash attention too
_NARROW = ("gpt2", "opt", "falcon", "bloom", "gptj")
_WIDE = ("llama", "qwen2", "gemma", "gemma2", "phi3", "phi", "mixtral", "qwen2_moe")

CHANGES: tuple[Change, ...] = (
    # ---- loading, gradient checkpointing
    Change("embeddings_ask_gradient", _TF, "5.0", False, "modeling_utils.py", "gradient_checkpointing_enable"),
    Change("packs_subclasses", _TF, "5.5", True, "integrations/bitsandbytes.py", "type(module) is nn.Linear"),
    Change("ties_t5_head", _TF, "5.0", False, "modeling_t5.py", "_tied_weights_keys", ("t5",)),
    # ---- buffers
    Change("rotary_original", _TF, "5.0", False, _LLAMA, "original_inv_freq is a buffer of its own"),
    Change("causal_buffers", _TF, "5.2", "mask", "modeling_gpt2.py", "bias", ("gpt2",)),
    Change("causal_buffers", _TF, "5.0", "mask and number", "modeling_gpt2.py", "masked_bias", ("gpt2",)),
    Change("causal_buffers", _TF, "4.49", "mask and number", "modeling_gpt_neox.py", "bias", ("gpt_neox",)),
    Change("embedding_scale_kept", _TF, "5.4", False, "modeling_gemma.py", "embed_scale is a buffer", _GEMMA),
    Change("rotary_place", _TF, "4.48", "both", _LLAMA, "position_embeddings", ("llama", "qwen2", "phi")),
    Change("rotary_place", _TF, "4.49", "both", "modeling_gpt_neox.py", "position_embeddings", ("gpt_neox",)),
    Change("rotary_place", _TF, "4.54", "both", "modeling_falcon.py", "position_embeddings", ("falcon",)),
    Change("rotary_place", _TF, "5.0", "both", "modeling_qwen2_moe.py", "position_embeddings", ("qwen2_moe",)),
    Change("rotary_place", _TF, "4.45", "layers", "modeling_qwen2.py", "position_embeddings", ("qwen2",)),
    Change("rotary_place", _TF, "4.48", "layers", _LLAMA, "position_embeddings", _LATE),
    Change("rotary_kept", _TF, "4.48", True, "modeling_mixtral.py", "cos_cached, sin_cached", ("mixtral",)),
    Change("rotary_kept", _TF, "4.45", True, "modeling_qwen2.py", "cos_cached, sin_cached", ("qwen2", "qwen2_moe")),
    Change("rotary_kept", _TF, "4.42", True, "modeling_mistral.py", "cos_cached, sin_cached", ("mistral", "gemma")),
    Change("rotary_kept", _TF, "4.41", True, _LLAMA, "_cos_cached, _sin_cached", ("llama",)),
    # ---- attention
    Change("attention_inline", _TF, "5.0", True, "modeling_qwen2_moe.py", "one attention class", ("qwen2_moe",)),
    Change("attention_inline", _TF, "4.48", True, _LLAMA, "ALL_ATTENTION_FUNCTIONS", _LLAMA_LIKE),
    Change("attention_returns_weights", _TF, "4.48", False, _LLAMA, "ALL_ATTENTION_FUNCTIONS", _RETURNING),
    Change("attention_returns_weights", _TF, "4.49", False, "modeling_gpt_neox.py", "the same", ("gpt_neox",)),
    Change("attention_returns_weights", _TF, "4.52", False, "modeling_opt.py", "the same", ("opt",)),
    Change("attention_returns_weights", _TF, "4.54", False, "modeling_falcon.py", "attn_weights", ("falcon",)),
    Change("attention_returns_weights", _TF, "5.0", False, "modeling_qwen2_moe.py", "the same", ("qwen2_moe",)),
    Change("flash_repeats", _TF, "4.48", True, "modeling_mistral.py", "MistralFlashAttention2", _REPEATING),
    Change("flash_repeats", _TF, "5.0", True, "modeling_qwen2_moe.py", "Qwen2MoeFlashAttention2", ("qwen2_moe",)),
    Change("grouped_sdpa", _TF, "5.13", "always", "integrations/sdpa_attention.py", "up to 256 values"),
    Change("grouped_sdpa", _TF, "4.54", "never", "integrations/sdpa_attention.py", "enable_gqa"),
    Change("grouped_sdpa", "torch", "2.5", "never", "integrations/sdpa_attention.py", "enable_gqa needs torch 2.5"),
    Change("sdpa_contiguous", _TF, "4.56", "always", "integrations/sdpa_attention.py", "contiguous() left out"),
    Change("sdpa_contiguous", _TF, "4.48", "masked", _LLAMA, "contiguous() only beside a mask", _LLAMA_LIKE),
    Change("sdpa_contiguous", _TF, "4.49", "masked", "modeling_gpt_neox.py", "the same", ("gpt_neox",)),
    Change("sdpa_contiguous", _TF, "4.48", "masked", "modeling_phi.py", "the same", ("phi",)),
    Change("sdpa_contiguous", _TF, "4.48", "never", "modeling_gpt2.py", "attention classes of its own", ("gpt2",)),
    Change("sdpa_contiguous", _TF, "4.52", "never", "modeling_opt.py", "attention classes of its own", ("opt",)),
    Change("sdpa_contiguous", _TF, "4.49", "always", "modeling_opt.py", "_shape() copies", ("opt",)),
    Change("scales_queries", _TF, "4.52", False, "modeling_opt.py", "scaled for all kernels", ("opt",)),
    Change("scales_queries", _TF, "4.49", True, "modeling_opt.py", "scaled for all kernels", ("opt",)),
    Change("sdpa_contiguous", _TF, "5.0", "masked", "modeling_qwen2_moe.py", "the same", ("qwen2_moe",)),
    # ---- experts
    Change("experts", _TF, "5.0", "linears", "modeling_mixtral.py", "experts in one tensor", _LOOPED),
    Change("visits_hit_experts", _TF, "4.52", False, "modeling_mixtral.py", "expert_hit", ("mixtral", "qwen2_moe")),
    Change("visits_hit_experts", _TF, "4.53", False, "modeling_qwen3_moe.py", "expert_hit", ("qwen3_moe",)),
    # ---- adapters
    Change("converts_targets", "peft", "0.19", False, "utils/transformers_weight_conversion.py", "added"),
    Change("spares_nested_head", "peft", "0.15", False, "tuners/tuners_utils.py", "all-linear by whole names"),
    # ---- 4-bit products
    Change(
        "keeps_4bit_input", "bitsandbytes", "0.43.2", True, "autograd/_functions.py", "MatMul4Bit's ctx.tensors"
    ),
    Change("computes_in_input_type", "bitsandbytes", "0.47", True, "nn/modules.py", "compute_type_is_set"),
    Change("fused_4bit", "bitsandbytes", "0.50", False, "autograd/_functions.py", "MatMul4Bit calls gemm_4bit"),
    # ---- the loss
    Change("loss_form", _TF, "4.49", "shifted", "loss/loss_utils.py", "ForCausalLMLoss pads labels"),
    Change("loss_form", _TF, "4.48", "narrow", "modeling_gpt2.py", "loss_function", _NARROW),
    Change(
        "loss_form", _TF, "4.49", "narrow", "modeling_gpt_neox.py", "loss_function", ("gpt_neox", "gpt_bigcode")
    ),
    Change("loss_form", _TF, "4.48", "wide", "modeling_mistral.py", "loss_function", ("mistral", "granite")),
    Change("loss_form", _TF, "4.46", "wide", _LLAMA, "loss_function", _WIDE),
    Change("float_masks", _TF, "4.53", True, "masking_utils.py", "masks are booleans, made in one place"),
    Change("causal_mask_added", _TF, "4.52", False, "modeling_gpt2.py", "_update_causal_mask", ("gpt2",)),
    Change("always_masked", _TF, "5.2", False, "modeling_falcon.py", "create_causal_mask", ("falcon",)),
    Change("sdpa_contiguous", _TF, "5.2", "masked", "modeling_falcon.py", "create_causal_mask", ("falcon",)),
    # ---- positions
    Change("positions_offset", _TF, "5.4", False, _LLAMA, "positions count from the cache's length"),
    Change("cache_positions", _TF, "5.4", True, "modeling_opt.py", "cache_position", _CACHE_POSITIONS),
    Change("cache_positions", _TF, "4.49", False, "modeling_opt.py", "cache_position", ("opt",)),
    Change("cache_positions", _TF, "5.0", False, "modeling_bert.py", "cache_position", ("bert", "roberta")),
    Change("blocks_take_positions", _TF, "4.52", False, "modeling_gpt2.py", "position_ids", ("gpt2",)),
    Change("rotary_product", _TF, "5.19", True, _LLAMA, "angles are an elementwise product"),
    Change("tables_by_need", _TF, "5.0", False, "modeling_gemma3.py", "one rotary table by kind", ("gemma3_text",)),
    Change("bias_apart", _TF, "5.15", False, "modeling_t5.py", "ALL_ATTENTION_FUNCTIONS", ("t5",)),
    Change("capped_sdpa", _TF, "5.21", True, "modeling_gemma2.py", "sdpa leaves the cap out", ("gemma2",)),
)


# Families whose runs under older releases were not followed: transformers' first release that is.
FOLLOWED_FROM = dict.fromkeys(
    ("deepseek_v2", "deepseek_v3", "gpt_oss", "gptj", "bert", "roberta", "deberta-v2", "t5"), "5.0"
)


def family_notes(versions: Versions, family: str) -> list[str]:
    """What is to be said where a family's older releases were not followed."""
    since = FOLLOWED_FROM.get(family)
    if since is None or parse(versions.transformers) >= _first(since):
        return []
    release = versions.transformers
    return [f"{family} under transformers {release}: releases before {since} were not followed; {since} answers"]


def versions_of(stated: Mapping[str, str | None]) -> Versions:
    """The versions that a request states, the reference's for the rest; unknown ones are refused in one line."""
    given = {name: text.strip() for name in LIBRARIES if (text := stated.get(name)) is not None}
    for name, text in given.items():
        release, newest = parse(text, f"--{name}"), parse(getattr(REFERENCE, name))
        if release[:2] > newest[:2] or release < _first(OLDEST[name]):
            raise BadInput(
                f"--{name} {text}: releases from {OLDEST[name]} to {getattr(REFERENCE, name)} are known; "
                "give one of those, or the nearest"
            )
    return replace(REFERENCE, **given)


def installed_versions(found: Mapping[str, str]) -> dict[str, str]:
    """Versions as installed, brought into the known range: a newer one is answered as the newest that is known."""
    known = {}
    for name in LIBRARIES:
        if name not in found or _NUMBER.fullmatch(found[name]) is None:
            continue
        release, newest = parse(found[name]), parse(getattr(REFERENCE, name))
        if release[:2] > newest[:2]:
            known[name] = getattr(REFERENCE, name)
        else:
            known[name] = found[name] if release >= _first(OLDEST[name]) else OLDEST[name]
    return known


def installed_notes(asked: Versions, found: Mapping[str, str]) -> list[str]:
    """What is to be said of a trace, which runs what is installed, where that is not what was asked for."""
    known = installed_versions(found)
    other = [
        f"{name} {found[name]}, not {text}"
        for name, text in asked.by_name().items()
        if name in known and not _within(found[name], text)
    ]
    if not other:
        return []
    return [f"the trace runs the libraries that are installed: {'; '.join(other)}"]


def _within(found: str, asked: str) -> bool:
    """Whether a release is one of those that a version stands for."""
    return all(part in (LATEST, given) for part, given in zip(parse(asked), parse(found)))


def parse(text: str, option: str = "") -> Release:
    """A version as three numbers; what is left out stands for the last there was."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise BadInput(f"{option} {text!r} is no version; give numbers such as 4.46 or 4.46.3")
    major, minor, patch = (int(part) if part is not None else LATEST for part in match.groups())
    return major, minor, patch


def _first(text: str) -> Release:
    """The first release that a version stands for."""
    return tuple(0 if part == LATEST else part for part in parse(text))  # type: ignore[return-value]


@lru_cache(maxsize=256)
def behaviour(versions: Versions, family: str = "") -> Behaviour:
    """What libraries of these versions do with models of a family."""
    if versions == REFERENCE:
        return REFERENCE_BEHAVIOUR
    flags: dict[str, Any] = {}
    releases = {name: parse(text) for name, text in versions.by_name().items()}
    for change in CHANGES:
        if (not change.families or family in change.families) and releases[change.library] < _first(change.since):
            flags[change.flag] = change.before
    return replace(REFERENCE_BEHAVIOUR, **flags)
