"""Which GPU of the catalogue a price list means: providers' names, the words in a machine's name, and memory.

Price lists say less than the catalogue knows: "A100" may have 40 or 80 GB, "H100" may be three cards. What a
list does not say is taken as its own convention has it; what cannot be told is the price of no GPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from peftplan.catalog.gpu_records import GpuRecord, find_gpu
from peftplan.catalog.names import normalise
from peftplan.units import GB, GIB, MIB

# A list's own names where they mean another card than the same word does on the command line. SkyPilot's
# catalogue writes A100 and V100 for the smaller of two memories, and RTX6000 for the Quadro of 2018.
_LISTED = {
    "a100": "a100-40",
    "v100": "v100-16",
    "h100mega": "h100",
    "rtxpro6000s": None,
    "rtx6000": None,
    "quadrortx6000": None,
}
# Machines that hold another form of a card than their list's name for it says, by the provider's own pages.
_MACHINES = (
    (re.compile(r"Standard_NC\d+a\w*_A100_v4"), "a100-80-pcie"),
    (re.compile(r"Standard_NC\d+a\w*_H100_v5"), "h100-nvl"),
)
# By family and what its name or machine says of the form: the card.
_FORMS = {
    ("a100-40", "pcie"): "a100-40-pcie",
    ("a100-80", "pcie"): "a100-80-pcie",
    ("h100", "pcie"): "h100-pcie",
    ("h100", "nvl"): "h100-nvl",
    ("rtx4070", "ti"): None,
    ("rtx4070", "tisuper"): "rtx4070tis",
    ("rtx4070", "super"): None,
    ("rtx4080", "super"): None,
    ("rtx5070", "ti"): None,
    ("rtx3060-12", "ti"): None,
    ("rtx3070-8", "ti"): None,
    ("rtx3080-10", "ti"): None,
    ("rtx3090", "ti"): None,
}
_LARGER = {"a100-40": "a100-80", "a100-40-pcie": "a100-80-pcie", "v100-16": "v100-32", "h100": "h100-nvl"}
# vast.ai's machines, of which a list gives one name for every memory.
_UNNAMED_MEMORY = re.compile(r"\d+x-\w+-\d+-\d+")
# A list's memory and the size on the box are the same when they are this near: units and reserved parts differ.
_ALIKE_FRAC = 0.13
_LEAST_MIB = 1000  # a "SizeInMiB" below it is in GB: no GPU here has less than 1 GiB


@dataclass(frozen=True, slots=True)
class Matched:
    """The GPU of a listed machine: its key, or why there is none; `unsure` says what was assumed."""

    key: str | None
    reason: str = ""
    unsure: str = ""


@lru_cache(maxsize=4096)
def match_gpu(listed: str, machine: str, count: int, memory: float | None = None) -> Matched:
    """The catalogue's GPU that a list calls `listed`, in a machine of `count` of them.

    `memory` is the list's figure for it, whatever its unit: MiB or GB, of one GPU or of all of them.
    """
    name = normalise(listed)
    if name in _LISTED and _LISTED[name] is None:
        return Matched(None, f"{listed} is not in the catalogue of GPUs")
    gpu = find_gpu(_LISTED.get(name) or listed) or _of_form(listed, machine)
    if gpu is None:
        return Matched(None, f"{listed} is not in the catalogue of GPUs")
    key = next((key for pattern, key in _MACHINES if pattern.fullmatch(machine)), gpu.key)
    form = _form(f"{listed} {machine}")
    if (key, form) in _FORMS:
        formed = _FORMS[key, form]
        if formed is None:
            return Matched(None, f"{listed} in {machine} is not in the catalogue of GPUs")
        key = formed
    return _checked(listed, key, machine, count, memory)


def _of_form(listed: str, machine: str) -> GpuRecord | None:
    """A card that the list names without its form: an RTX4060 in a machine of RTX_4060_Ti."""
    form = _form(machine)
    return find_gpu(f"{listed}-{form}") if form else None


def _form(text: str) -> str:
    """What a name says of the form: pcie, nvl, ti, super, tisuper, or nothing."""
    words = re.split(r"[^a-z0-9]+", text.lower())
    if any(word.startswith("pcie") or word.endswith("pcie") for word in words):
        return "pcie"
    if any(word.endswith("nvl") for word in words):
        return "nvl"
    ti = any(re.fullmatch(r"(?:\d{4})?s?ti", word) for word in words)
    is_super = any(re.fullmatch(r"(?:\d{4}(?:ti)?)?(?:super|s)|\d{4}sti", word) for word in words)
    return ("ti" if ti else "") + ("super" if is_super else "")


def _checked(listed: str, key: str, machine: str, count: int, memory: float | None) -> Matched:
    """The card where the list's memory is its own; the larger one of the same name where it is that one's."""
    choices = [key, *((_LARGER[key],) if key in _LARGER else ())]
    if memory is None:
        return Matched(key, unsure=_unsure(key, machine))
    known = [(choice, gpu) for choice in choices if (gpu := find_gpu(choice)) is not None]
    off = {choice: min(_off(size, gpu) for size in _readings(memory, count)) for choice, gpu in known}
    nearest = min(off, key=lambda choice: off[choice])
    if off[nearest] <= _ALIKE_FRAC:
        return Matched(nearest)
    return Matched(None, f"{listed} of {memory:g} is no size that the catalogue has for {key}")


def _unsure(key: str, machine: str) -> str:
    """What had to be assumed where no memory is listed."""
    if not _UNNAMED_MEMORY.fullmatch(machine):
        return ""
    if key in ("a100-40", "a100-40-pcie", "v100-16"):
        return "memory not listed: taken as the smaller of two"
    return "memory not listed: taken as 16 GB" if key == "rtx4060ti-16" else ""


def _readings(memory: float, count: int) -> list[float]:
    """What a figure may mean, in bytes of one GPU."""
    unit = GB if memory < _LEAST_MIB else MIB
    return [memory * unit, memory * unit / count]


def _off(num_bytes: float, gpu: GpuRecord) -> float:
    """How far a size is from the one on the card's box: printed in GB, made in GiB."""
    return min(abs(num_bytes / size - 1) for size in (gpu.sold_bytes / GB * GIB, gpu.sold_bytes))
