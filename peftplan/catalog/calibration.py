"""What a user's own records say of their machine: one small file in their config folder."""

from __future__ import annotations

import json
import os
import sys
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

SCHEMA_VERSION = 1


class GpuCalibration(BaseModel):
    """One GPU's figures, each the median over the records of its runs.

    `context_bytes` is what a process holds outside torch's allocator, `reserved_ratio` what was reserved over what
    was predicted, `power_w` what the GPU drew while steps were measured, `step_time_ratios` what steps took over
    what was predicted, by kind of run (full, adapters, packed).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_runs: int = Field(ge=1)
    context_bytes: int | None = Field(None, ge=0)
    reserved_ratio: float | None = Field(None, gt=0)
    power_w: float | None = Field(None, gt=0)
    step_time_ratios: dict[str, Annotated[float, Field(gt=0)]] = {}

    def step_time_ratio(self, kind: str) -> float | None:
        """What steps of a kind took over what was predicted; of other kinds where this one was not measured."""
        if kind in self.step_time_ratios or not self.step_time_ratios:
            return self.step_time_ratios.get(kind)
        return median(self.step_time_ratios.values())


class Calibration(BaseModel):
    """The file: figures by the GPU's key in the catalogue."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: int = SCHEMA_VERSION
    date: str
    source: str
    gpus: dict[str, GpuCalibration]


def calibration_file() -> Path:
    """Where the calibration is kept, as the platform has it."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        base = home / "Library" / "Preferences"
    else:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return base / "peftplan" / "calibration.json"


def read_calibration() -> Calibration | None:
    """The user's calibration; one that cannot be used is passed over with a warning, once."""
    try:
        path = calibration_file()
        modified = path.stat().st_mtime_ns
    except (OSError, RuntimeError):
        return None
    return _read(path, modified)


@lru_cache(maxsize=4)
def _read(path: Path, modified: int) -> Calibration | None:
    try:
        found = Calibration.model_validate(json.loads(path.read_bytes()))
        if found.schema_version != SCHEMA_VERSION:
            raise ValueError(found.schema_version)
    except (OSError, ValueError, RecursionError, ValidationError):
        sys.stderr.write(
            f"warning: {path} is no calibration and is passed over; `peftplan calibrate` renews it, "
            "`peftplan calibrate --remove` removes it\n"
        )
        return None
    return found
