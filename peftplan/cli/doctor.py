"""`peftplan doctor`: what this machine has, and what needs it. Nothing heavy is imported to find out."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peftplan
from peftplan.cli.catalogue import Row
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.spec import Command

EVERY = "every command"
FIELDS = {
    "name": "what was looked for",
    "found": "whether this machine has it",
    "detail": "its version, place or what it says",
    "needed_by": "which command needs it, or what it is good for",
}
# module -> (distribution, what needs it)
REQUIRED = {
    "pydantic": ("pydantic", EVERY),
    "typer": ("typer", "help and shell completion"),
    "rich": ("rich", "tables; not --json, --csv, --markdown, --plain"),
}
HUB = {"huggingface_hub": ("huggingface_hub", "a MODEL that is a Hub id and not in the local cache")}
DATA = {"pyarrow": ("pyarrow", "--data of a Parquet file")}
EXPLORER = {"streamlit": ("streamlit", "ui")}
# Estimates need none of these: what they would do is worked out from the versions named in every answer.
MIRRORED = {
    "torch": "trace, profile",
    "transformers": "trace, profile",
    "peft": "trace and profile, of adapters",
    "bitsandbytes": "trace and profile, of packed weights and 8-bit optimizers",
}
_OF_NVML = "profile: memory of the process, load, power, energy"
_PATIENCE_S = 10.0


def run(given: dict[str, Any]) -> int:
    """Look at this machine."""
    if given.get("json_schema"):
        from peftplan.cli.catalogue import rows_schema

        return write_schema(rows_schema(FIELDS))
    form = chosen_form(given)
    rows = look()
    from peftplan.cli.catalogue import rows_as_csv, rows_as_json

    emit(form, lambda: rows_as_json(rows), lambda: [_table(rows)], lambda: rows_as_csv(rows))
    return 0


def look() -> list[Row]:
    """One row for each thing that a command may need."""
    rows = [
        _row("python", True, f"{platform.python_version()} at {sys.executable}", EVERY),
        _row("peftplan", True, f"{peftplan.__version__} at {Path(peftplan.__file__).parent}", EVERY),
    ]
    rows += [_module(name, *about) for name, about in {**REQUIRED, **HUB, **DATA, **EXPLORER}.items()]
    rows.append(_hub_cache())
    from peftplan.versions import REFERENCE

    for name, needed_by in MIRRORED.items():
        mirrored = getattr(REFERENCE, name)
        rows.append(_module(name, name, f"{needed_by}; estimates mirror version {mirrored}"))
    rows += [_nvml(), _module("pynvml", "nvidia-ml-py", _OF_NVML), *_gpus()]
    return rows


def _row(name: str, found: bool, detail: str, needed_by: str) -> Row:
    return {"name": name, "found": found, "detail": detail, "needed_by": needed_by}


def _module(name: str, distribution: str, needed_by: str) -> Row:
    """A package, found without being imported."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = find_spec(name) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        return _row(name, False, f"pip install {distribution}", needed_by)
    try:
        return _row(name, True, version(distribution), needed_by)
    except PackageNotFoundError:
        return _row(name, True, "version unknown", needed_by)


def _hub_cache() -> Row:
    needed_by = "a MODEL that is a Hub id, without network"
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE", str(Path(home) / "hub"))).expanduser()
    try:
        number = sum(1 for _ in cache.glob("models--*")) if cache.is_dir() else None
    except OSError:
        number = None
    if number is None:
        return _row("Hub cache", False, f"no folder {cache}", needed_by)
    return _row("Hub cache", True, f"{number} models in {cache}", needed_by)


def _nvml() -> Row:
    from ctypes.util import find_library

    library = find_library("nvidia-ml")
    return _row("NVML", library is not None, library or "no NVIDIA driver library", _OF_NVML)


def _gpus() -> list[Row]:
    """The GPUs that nvidia-smi lists, under the names that --gpu takes."""
    import subprocess

    needed_by = "profile; its name is what --gpu takes"
    path = shutil.which("nvidia-smi")
    if path is None:
        return [_row("nvidia-smi", False, "not on PATH", needed_by)]
    try:
        asked = [path, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        done = subprocess.run(  # noqa: S603  # a fixed program with fixed arguments
            asked, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [_row("nvidia-smi", False, f"{path} does not answer ({type(error).__name__})", needed_by)]
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not lines:
        return [_row("nvidia-smi", True, f"{path} lists no GPU", needed_by)]
    from peftplan.catalog import find_gpu

    rows = []
    for line in lines:
        record = find_gpu(line.partition(",")[0])
        known = f"--gpu {record.key}" if record is not None else "not in the catalogue"
        rows.append(_row("GPU", True, f"{line} ({known})", needed_by))
    return rows


def _table(rows: list[Row]) -> Any:
    from peftplan.render.blocks import Column, Table

    return Table(
        "This machine",
        (Column("what"), Column("here"), Column("detail"), Column("needed by")),
        tuple((r["name"], "yes" if r["found"] else "no", r["detail"], r["needed_by"]) for r in rows),
    )


COMMAND = Command(
    run,
    (),
    output_options(),
    f"The JSON holds rows; each has {', '.join(FIELDS)}.",
)
