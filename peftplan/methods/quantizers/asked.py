"""From what a request says of packed weights to their format: defaults filled in, and what cannot be refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from peftplan.errors import BadInput, shown
from peftplan.methods.quantizers import QUANTIZERS
from peftplan.methods.quantizers.quantizer import Asked, Quantizer, Settled
from peftplan.specs.formats import PackedFormat

_WHERE = "quantization_config"


def settled(name: str, asked: Asked) -> Settled:
    """The settings with defaults filled in; what the quantiser does not take is refused with what it does."""
    row = QUANTIZERS[name]
    bits = row.default_bits if asked.bits is None else asked.bits
    size = row.default_block_size if asked.block_size is None else asked.block_size
    if bits not in row.bits:
        raise BadInput(f"--quant-bits {bits} with --quant {name}: it has {_listed(row.bits)}; give one of these")
    if size not in row.block_sizes:
        raise BadInput(
            f"--quant-block-size {size} with --quant {name}: it groups {_listed(row.block_sizes)} weights; "
            "give one of these"
        )
    return Settled(bits, size, asked.double_quant, _options(row, asked.options))


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))


def _options(row: Quantizer, given: Mapping[str, Any]) -> Any:
    try:
        return row.options.model_validate({key.replace("-", "_"): _number(value) for key, value in given.items()})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, known = str(first["loc"][0]), row.options.model_fields
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has no options of its own"
            raise BadInput(f"--quant-option {name} is none of --quant {row.name}; {has}") from None
        told = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        raise BadInput(f"--quant-option {name}={first['input']} is not allowed; it {told}") from None


def _number(value: Any) -> Any:
    """A whole number where a word is one: choices among numbers are compared by value."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?\d{1,4}", value) else value


def format_of(name: str, asked: Asked) -> PackedFormat:
    """The storage format of packed weights."""
    return QUANTIZERS[name].make(settled(name, asked))


def named_in(config: Mapping[str, Any]) -> str | None:
    """The quantiser that a model's config says its checkpoint is packed by; None where it says none.

    One that is not known is refused by name: its weights would be counted as what they are not.
    """
    stated = _stated(config)
    if stated is None:
        return None
    method = str(stated.get("quant_method", "")).lower().replace("-", "_")
    if not method and (stated.get("load_in_4bit") or stated.get("load_in_8bit")):
        method = "bitsandbytes"
    if method == "bitsandbytes":
        return "int8" if stated.get("load_in_8bit") else _four_bit_type(stated)
    if method not in QUANTIZERS:
        raise BadInput(
            f"the config's {_WHERE} says quant_method {method[:60] or 'nothing'}, and peftplan knows "
            f"{', '.join(QUANTIZERS)}; "
            "give the config of the model before it was packed, or --quant none for its weights in 16 bits"
        )
    return method


def _four_bit_type(stated: Mapping[str, Any]) -> str:
    """bitsandbytes' two 4-bit formats; fp4 is its default."""
    value = stated.get("bnb_4bit_quant_type", "fp4")
    if value not in ("nf4", "fp4"):
        raise BadInput(
            f"the config's {_WHERE} says bnb_4bit_quant_type {shown(value)}, and there are nf4, fp4; correct it, "
            "or take --quant none"
        )
    return str(value)


def read_from(config: Mapping[str, Any]) -> Asked:
    """The settings that a checkpoint's config states, of a quantiser that `named_in` gave."""
    stated, name = _stated(config), named_in(config)
    if stated is None or name is None:
        return Asked()
    row = QUANTIZERS[name]
    try:
        found = row.reads(stated)
    except (TypeError, AttributeError):
        raise BadInput(
            f"the config's {_WHERE} cannot be read as {name}'s; correct it, or take --quant none"
        ) from None
    for what, value, has in (("bits", found.bits, row.bits), ("group size", found.block_size, row.block_sizes)):
        if value is not None and (type(value) is not int or value not in has):
            raise BadInput(
                f"the config's {_WHERE} says {shown(value)} for {name}'s {what}, which is one of {_listed(has)}; "
                "correct it, or take --quant none"
            )
    return found


def skips_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of modules that a checkpoint's config says are not packed."""
    stated, name = _stated(config), named_in(config)
    if stated is None or name is None:
        return ()
    found: list[str] = []
    for key in QUANTIZERS[name].skips:
        value = stated.get(key)
        names = [] if value is None else value
        if not isinstance(names, list) or not all(isinstance(word, str) and word for word in names):
            raise BadInput(
                f"the config's {_WHERE} says {key} {shown(value)}, which is no list of modules' names; correct it, "
                "or take --quant none"
            )
        found += [word.removesuffix(".weight") for word in names]
    return tuple(found)


def skipped(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of these leaves the module dense: a beginning that ends at a dot, or an ending.

    Assumes: no regular expressions, which transformers takes too. Source: transformers-quantizers
    (quantizers_utils.py, should_convert_module).
    """
    return any(f"{name}.".startswith(f"{pattern}.") or name.endswith(pattern) for pattern in patterns)


def _stated(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for section in (config, config.get("text_config")):
        stated = section.get(_WHERE) if isinstance(section, Mapping) else None
        if isinstance(stated, Mapping):
            return stated
        if stated is not None:
            raise BadInput(
                f"the config's {_WHERE} is {shown(stated)}, and a mapping of settings is needed; correct it, or "
                "take --quant none"
            )
    return None
