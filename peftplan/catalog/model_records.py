"""The models peftplan knows by name: their config.json, parameter count and source."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from peftplan.catalog.names import nearest, normalise

_FOLDER = Path(__file__).with_name("models")


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One model: `config` holds the keys of its Hugging Face config.json that decide shapes.

    `num_params` counts what transformers builds from `config`, tied weights once; of a
    vision-language config, its text tower.
    """

    id: str
    aliases: tuple[str, ...]
    num_params: int
    source: str
    date: str
    config: Mapping[str, Any] = field(hash=False)
    note: str = ""

    def implied_names(self) -> Iterator[str]:
        """What needs no alias: the id and each alias behind its organisation, also without `-hf`."""
        for full in (self.id, *self.aliases):
            last = full.rpartition("/")[2]
            yield last
            if last.endswith("-hf"):
                yield last.removesuffix("-hf")


@lru_cache(maxsize=1)
def all_models() -> tuple[ModelRecord, ...]:
    """Every record, file by file; read once, on first use."""
    return tuple(
        _record(raw)
        for path in sorted(_FOLDER.glob("*.json"))
        for raw in json.loads(path.read_text(encoding="utf-8"))
    )


def find_model(name: str) -> ModelRecord | None:
    """The model called `name`: an id, an alias, or either without its organisation."""
    spelling = normalise(name)
    for names in _names():
        if spelling in names:
            return names[spelling][0]
    return None


def nearest_models(name: str, n: int = 3) -> list[str]:
    """The known names most like `name`, one per model, best first: what to suggest after a typo."""
    known: dict[str, tuple[ModelRecord, str]] = {}
    for names in reversed(_names()):
        known.update(names)
    best: dict[str, str] = {}
    for spelling in nearest(name, known):
        record, written = known[spelling]
        best.setdefault(record.id, written)
    return list(best.values())[:n]


@lru_cache(maxsize=1)
def _names() -> tuple[dict[str, tuple[ModelRecord, str]], ...]:
    """Normalised spelling -> (record, spelling as written), in the order in which they are believed.

    Ids come first, then aliases, then implied names: the alias `llama-7b` (Llama 2) thereby wins
    over the last part of `huggyllama/llama-7b`, whose full id still finds the first LLaMA.
    """
    ids: dict[str, tuple[ModelRecord, str]] = {}
    aliases: dict[str, tuple[ModelRecord, str]] = {}
    implied: dict[str, tuple[ModelRecord, str]] = {}
    for record in all_models():
        ids[normalise(record.id)] = (record, record.id)
        for alias in record.aliases:
            aliases[normalise(alias)] = (record, alias)
        for name in record.implied_names():
            implied.setdefault(normalise(name), (record, name))
    return ids, aliases, implied


def _record(raw: Mapping[str, Any]) -> ModelRecord:
    return ModelRecord(
        id=raw["id"],
        aliases=tuple(raw["aliases"]),
        num_params=raw["num_params"],
        source=raw["source"],
        date=raw["date"],
        # Records are shared by every caller: a config is read, never edited in place.
        config=MappingProxyType(raw["config"]),
        note=raw.get("note", ""),
    )
