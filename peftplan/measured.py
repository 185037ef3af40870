"""One measured run: what was asked for, what came out, on what, and where it is written down.

A profile of one's own and a row that others published become the same record, and predictions are scored on
both alike. A record is JSON; reading one needs no torch. All bytes are integers of one device.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from peftplan.errors import BadInput, shown
from peftplan.request import Request

SCHEMA_VERSION = 1

Metric = Literal["allocated", "reserved", "device", "tokens_per_s", "step_s"]
# What is weighed against a prediction, in the order in which answers list it.
METRICS: tuple[Metric, ...] = ("allocated", "reserved", "device", "tokens_per_s", "step_s")
BYTE_METRICS: frozenset[Metric] = frozenset({"allocated", "reserved", "device"})

Bytes = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Day = Annotated[str, BeforeValidator(str), Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]  # as ISO 8601 has it


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Hardware(_Frozen):
    """What the run ran on, in the words of the driver or of the source."""

    gpu: str
    num_gpus: Annotated[int, Field(ge=0)] = 1  # 0: a run on the CPU
    driver: str | None = None
    cuda: str | None = None
    total_bytes: Bytes | None = None
    usable_bytes: Bytes | None = None
    compute_capability: tuple[int, int] | None = None
    host: str | None = None


class Figures(_Frozen):
    """What was measured; None where it was not.

    `allocated_bytes` and `reserved_bytes` are the allocator's peaks over the measured steps, `device_bytes` the
    process's own memory as the driver reports it, `device_total_bytes` all that is used on the device. `moments`
    and `categories` carry the words of a report: moments of a step, parts of the peak.
    """

    allocated_bytes: Bytes | None = None
    reserved_bytes: Bytes | None = None
    device_bytes: Bytes | None = None
    device_total_bytes: Bytes | None = None
    context_bytes: Bytes | None = None
    moments: dict[str, Bytes] = {}
    categories: dict[str, Bytes] = {}
    resident: dict[str, Bytes] = {}  # requested bytes of what lives from step to step
    activations_bytes: Bytes | None = None
    num_params: Annotated[int, Field(ge=0)] | None = None
    num_trainable_params: Annotated[int, Field(ge=0)] | None = None
    step_s: Amount | None = None  # the median of the measured steps
    step_s_each: tuple[Amount, ...] = ()
    tokens_per_s: Amount | None = None
    flop_per_s: Amount | None = None
    hfu_frac: Annotated[float, Field(ge=0, le=1)] | None = None
    utilisation_frac: Annotated[float, Field(ge=0, le=1)] | None = None
    power_w: Amount | None = None
    energy_j: Amount | None = None

    def of(self, metric: Metric) -> float | None:
        """One figure by the name of its metric."""
        value = getattr(self, f"{metric}_bytes" if metric in BYTE_METRICS else metric)
        return None if value is None else float(value)


class MeasuredRun(_Frozen):
    """A run that somebody carried out, with what it took.

    `config_key` is equal for runs of one configuration, which together count once.
    """

    schema_version: Literal[1] = 1
    kind: Literal["profile", "published"]
    source: str
    reference: str = ""  # where the source says it: path, commit, row
    date: Day
    outcome: Literal["completed", "out_of_memory", "failed", "interrupted"] = "completed"
    request: Request
    measured: Figures
    hardware: Hardware
    libraries: dict[str, str] = {}
    metric: Metric = "allocated"  # the one to compare where several were measured alike
    quality: str = ""
    config_key: str = ""
    notes: tuple[str, ...] = ()


def read_record(text: str | bytes, where: str) -> MeasuredRun:
    """A record from its JSON; one that is damaged, or of another version, is refused in one line."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput(f"{where} holds no JSON; give a record as `peftplan profile` writes it") from None
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise BadInput(
            f"{where} is no record of schema version {SCHEMA_VERSION} (it says {shown(version)}); "
            "read it with the peftplan that wrote it"
        )
    try:
        return MeasuredRun.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the record"
        raise BadInput(f"{where}: {place} is not as a record has it ({first['msg']})") from None
