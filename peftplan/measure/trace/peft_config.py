"""Reading peft's `adapter_config.json`: as data, bounded, and without what describes a saved adapter only."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from peftplan.errors import BadInput, NotFound, shown
from peftplan.units import MIB, format_bytes

MAX_BYTES = MIB
# Where an adapter came from, and how it was loaded: nothing of how it trains. The task follows from the model.
_NOT_TRAINING = (
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "task_type",
)
OPTION = "--peft-config"


def read_peft_config(path: Path) -> dict[str, Any]:
    """The config's fields, `peft_type` among them; a folder is asked for its adapter_config.json."""
    name = shown(str(path))
    try:
        if path.is_dir():
            path = path / "adapter_config.json"
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"{OPTION}: {name} is no regular file; give peft's adapter_config.json")
        if status.st_size > MAX_BYTES:
            raise BadInput(
                f"{OPTION}: {name} has {format_bytes(status.st_size)}; such a file has at most "
                f"{format_bytes(MAX_BYTES)}"
            )
        text = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise NotFound(f"{OPTION}: {name} cannot be read ({reason}); give peft's adapter_config.json") from None
    return _fields(text, name)


def _fields(text: bytes, name: str) -> dict[str, Any]:
    def refuse(constant: str) -> float:
        raise ValueError(constant)

    try:
        fields = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise BadInput(f"{OPTION}: {name} is no JSON; give peft's adapter_config.json") from None
    kind = fields.get("peft_type") if isinstance(fields, dict) else None
    if not isinstance(kind, str) or not kind.strip():
        raise BadInput(
            f"{OPTION}: {name} has no peft_type; give peft's adapter_config.json, as save_pretrained writes it"
        )
    return {key: value for key, value in fields.items() if key not in _NOT_TRAINING}
