"""Find a model's config: in the catalogue, in a file or folder, in the local Hub cache, or on the Hub.

A config is read as JSON and nothing else: no code of a model repository is ever executed.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftplan.catalog.model_records import find_model, nearest_models
from peftplan.errors import BadInput, MachineLacks, NotFound
from peftplan.units import MIB, format_bytes

# The longest config.json of a published model is about 300 KB; a file beyond this is something else.
MAX_CONFIG_BYTES = 8 * MIB
_HUB_TIMEOUT_S = 5.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+")


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model's config, what it is called, and where it was found."""

    id: str
    config: Mapping[str, Any]
    origin: str  # a sentence for the notes
    in_catalogue: bool = False

    def key(self) -> str:
        """What tells this config from any other: a catalogue id, or the config itself."""
        return self.id if self.in_catalogue else json.dumps(self.config, sort_keys=True, default=str)


def find_config(name: str) -> FoundModel:
    """The config that `name` means. Raises NotFound, BadInput or MachineLacks, each with what to do."""
    if not name.strip():
        raise BadInput(
            "MODEL is empty; give a catalogue name (see `peftplan models`), a config file, a folder or a Hub id"
        )
    record = find_model(name)
    if record is not None:
        return FoundModel(record.id, record.config, f"{name} taken as {record.id} from the catalogue", True)
    try:
        path = Path(name).expanduser()
        if path.exists():
            return _from_path(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise NotFound(
            f"{_short(name)} cannot be opened ({_reason(error)}); give a config file or a folder "
            "that holds config.json"
        ) from None
    if _HUB_ID.fullmatch(name) and not name.endswith(".json"):
        return _from_hub(name)
    raise NotFound(f"{_short(name)} is no catalogue name, file or folder{_suggest(name)}")


def parse_config(text: str | bytes, where: str) -> dict[str, Any]:
    """JSON text as a config object; NaN, infinities, deep nesting and non-objects are refused."""

    def refuse(constant: str) -> float:
        raise BadInput(f"{where} holds {constant}, which is no JSON; write a finite number")

    try:
        value = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{where} is no valid JSON ({error.msg} at line {error.lineno}); "
            "give the model's config.json as published"
        ) from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise BadInput(f"{where} is no readable config ({_reason(error)}); give the model's config.json") from None
    if not isinstance(value, dict):
        raise BadInput(f"{where} holds a JSON {type(value).__name__}, not an object; give a model's config.json")
    return value


def check_config_size(num_bytes: int, where: str) -> None:
    """Refuse what is too long to be a config."""
    if num_bytes > MAX_CONFIG_BYTES:
        raise BadInput(
            f"{where} has {format_bytes(num_bytes)}; a config.json has at most "
            f"{format_bytes(MAX_CONFIG_BYTES)} - this may be a file of weights"
        )


def _from_path(path: Path) -> FoundModel:
    if path.is_dir():
        inside = path / "config.json"
        if not inside.exists():
            raise NotFound(f"{_short(str(path))} holds no config.json; give a folder that does, or a config file")
        path = inside
    return FoundModel(str(path), _read(path), f"config read from {path}")


def _read(path: Path) -> dict[str, Any]:
    where = _short(str(path))
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise BadInput(f"{where} is no regular file; give a model's config.json")
    check_config_size(status.st_size, where)
    return parse_config(path.read_bytes(), where)


def _from_hub(name: str) -> FoundModel:
    cached = _cached(name)
    if cached is not None:
        return FoundModel(name, _read(cached), f"config of {name} read from the local Hub cache")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise NotFound(
            f"{name} is not in the catalogue nor in the local Hub cache, and HF_HUB_OFFLINE is set{_suggest(name)}"
        )
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise MachineLacks(
            f"{name} is not in the catalogue nor in the local Hub cache; to fetch its config, "
            f"pip install huggingface_hub{_suggest(name)}"
        ) from None
    if not _hub_answers():
        raise NotFound(
            f"{name} is not in the catalogue nor in the local Hub cache, and the Hub cannot be reached"
            f"{_suggest(name)}"
        )
    import logging  # here, so that the command line starts without it

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        fetched = Path(hf_hub_download(name, "config.json"))
    except (RepositoryNotFoundError, EntryNotFoundError):
        raise NotFound(f"{name} has no config.json on the Hub, or does not exist{_suggest(name)}") from None
    except Exception as error:  # noqa: BLE001 - its client raises errors of many libraries
        raise NotFound(
            f"the config of {name} could not be fetched from the Hub ({type(error).__name__}){_suggest(name)}"
        ) from None
    return FoundModel(name, _read(fetched), f"config of {name} fetched from the Hub")


def _hub_answers() -> bool:
    """Whether the Hub can be reached at all: asked once, since its client would retry for minutes."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if not endpoint.startswith(("https://", "http://")):
        return False
    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=_HUB_TIMEOUT_S).close()  # noqa: S310 - checked above
    except HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def cached_snapshot(name: str) -> Path | None:
    """The folder of the newest cached snapshot that has a config.json, by the Hub cache's documented layout."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    repository = cache / f"models--{name.replace('/', '--')}"
    try:
        reference = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
        snapshot = repository / "snapshots" / reference
        if (snapshot / "config.json").is_file():
            return snapshot
        found = [p for p in repository.glob("snapshots/*/config.json") if p.is_file()]
    except (OSError, ValueError):
        return None
    newest = max(found, key=lambda p: p.stat().st_mtime, default=None)
    return None if newest is None else newest.parent


def _cached(name: str) -> Path | None:
    snapshot = cached_snapshot(name)
    return None if snapshot is None else snapshot / "config.json"


def _suggest(name: str) -> str:
    near = nearest_models(name)
    if near:
        return f"; nearest in the catalogue: {', '.join(near)} (all: `peftplan models`)"
    return "; see `peftplan models` for the catalogue"


def _short(name: str) -> str:
    return name if len(name) <= 80 else name[:77] + "..."


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or type(error).__name__
    return str(text)
