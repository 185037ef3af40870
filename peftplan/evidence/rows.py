"""Published rows as measured runs: what each measured, in bytes or tokens, and what it asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from peftplan.catalog import find_gpu
from peftplan.cost.buckets import Bucketed
from peftplan.evidence import comparison
from peftplan.evidence.cells import SetAside, first_word, number, text_of, whole
from peftplan.evidence.libraries import day_of, libraries
from peftplan.evidence.mapping import gpu_key, request_fields
from peftplan.evidence.stacks import foreign_kernels
from peftplan.evidence.tables import Kind, Row, Table
from peftplan.evidence.time_rows import speed, throughput_request, timed_request
from peftplan.measured import Figures, Hardware, MeasuredRun, Metric
from peftplan.methods import METHODS
from peftplan.request import Request
from peftplan.units import GB, GIB, MIB

_METRICS: dict[str, Metric] = {
    "torch_peak_allocated": "allocated",
    "torch_peak_active": "allocated",  # blocks in use; on one stream the same as allocated
    "torch_peak_reserved": "reserved",
    "nvidia_smi_peak": "device",
}
_UNITS = {"bytes": 1, "MiB": MIB, "GiB": GIB, "GB(1e9)": GB, "MB(1e6)": GB // 1000}
_GOOD = ("A", "A-", "B", "B-", "")


@dataclass(frozen=True, slots=True)
class Case:
    """One data row: a run to predict, or the reason why it cannot be held against a prediction.

    A run with `apart` is predicted and listed, but does not count.
    """

    row: int
    source: str
    model: str
    method: str
    metric: str
    config_key: str
    run: MeasuredRun | None
    reason: str = ""
    apart: str = ""
    num_trainable: int | None = None  # as the source counts it
    batches: Bucketed | None = None  # where the figure is a share of steps whose lengths vary


def cases(table: Table) -> list[Case]:
    """Every row of a table, in order."""
    return [_case(row, place, table.kind) for place, row in enumerate(table.rows, start=1)]


def timed_cases(table: Table) -> list[Case]:
    """The rows of a table that carry a speed, as runs whose speed is predicted."""
    if table.kind == "throughput":
        return cases(table)
    return [
        _case(row, place, "timed")
        for place, row in enumerate(table.rows, start=1)
        if row.get("tokens_per_s") and table.kind == "memory"
    ]


def _case(row: Row, place: int, kind: Kind | Literal["timed"]) -> Case:
    reader = {"memory": memory_run, "oom": oom_run, "throughput": throughput_run, "timed": timed_run}[kind]
    run, reason = None, ""
    # for a speed, kernels of a stack's own are an input: fused ones
    apart = foreign_kernels(row) if kind in ("memory", "oom") else ""
    try:
        run = reader(row)
        reason = f"listed apart: {apart}" if apart else ""
    except SetAside as error:
        reason = str(error)
    metric = _metric_word(row, kind)
    varied = kind == "memory" and run is not None and comparison.is_of_comparison(row)
    return Case(
        row=place,
        source=row.get("source", ""),
        model=row.get("model", ""),
        method=row.get("method", ""),
        metric=metric,
        config_key=row.get("config_key") or f"row {place}",
        run=run,
        reason=reason,
        apart=apart if run is not None else "",
        num_trainable=_count(row),
        batches=comparison.batches(row) if varied else None,
    )


def _count(row: Row) -> int | None:
    try:
        return round(number(row, "trainable_params") or 0) or None
    except SetAside:
        return None


def _metric_word(row: Row, kind: Kind | Literal["timed"]) -> str:
    if kind == "memory":
        return _METRICS.get(row.get("metric_norm", ""), "reserved" if "reserved" in row["metric_norm"] else "")
    return "device" if kind == "oom" else "tokens_per_s"


# ---- memory


def memory_run(row: Row) -> MeasuredRun:
    """A row of memory.csv."""
    metric = _metric(row)
    measured = _measured_bytes(row)
    request = comparison.request(row) if comparison.is_of_comparison(row) else _request(row)
    tokens = number(row, "tokens_per_s") if "per gpu" in row.get("tokens_per_s_scope", "").lower() else None
    return MeasuredRun.model_construct(
        kind="published",
        source=row.get("source", ""),
        reference=" ".join(filter(None, (row.get("url_or_repo_path"), row.get("commit")))),
        date=day_of(row),
        request=request,
        measured=Figures.model_validate(
            {f"{metric}_bytes": measured, "step_s": number(row, "step_time_s"), "tokens_per_s": tokens}
        ),
        hardware=_hardware(row),
        libraries=libraries(row),
        metric=metric,
        quality=row.get("quality", ""),
        config_key=row.get("config_key", ""),
        notes=tuple(filter(None, (row.get("notes"),))),
    )


def _metric(row: Row) -> Metric:
    words = text_of(row, "metric_norm")
    if comparison.is_of_comparison(row):
        comparison.example_lengths(number(row, "mean_tokens_per_sample") or 0.0)
        return "reserved"
    if words == "torch_reserved_p99":
        raise SetAside("99th percentile of reserved memory after each of many steps of varying length: no peak")
    if words not in _METRICS:
        raise SetAside(f"metric {words or 'not stated'}: what was measured is not known")
    return _METRICS[words]


def _measured_bytes(row: Row) -> int:
    if row.get("per_gpu", "yes").lower() not in ("yes", ""):
        raise SetAside("a total over several GPUs, not one device")
    if row.get("quality", "") not in _GOOD:
        raise SetAside(f"quality {row['quality']}: a rounded figure, or of an unknown tool")
    unit = _UNITS.get(row.get("memory_unit", ""))
    printed = number(row, "memory_gb")
    if unit is not None and printed is not None:
        measured = round(printed * unit)
    else:
        size = number(row, "memory_gib")
        if size is None:
            raise SetAside("the unit is ambiguous (10^9 or 2^30), or no figure is given")
        measured = round(size * GIB)
    if measured <= 0:
        raise SetAside("no figure is given")
    return measured


def _request(row: Row) -> Request:
    try:
        return Request(**request_fields(row))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SetAside(f"{first['loc'][0]} {first['input']!r} is out of bounds") from None


# ---- out of memory


def _default_quant(name: str) -> str:
    method = METHODS.get(name)
    return (method.default_quant if method else None) or "none"


_FRUGAL = {
    "base_dtype": "bf16",
    "mixed_precision": "none (not stated)",
    "attn_impl": "flash_attention_2",
    "gc_norm": "full",
    "target_modules": "q_proj v_proj",
    "optimizer": "sgd",
}


def oom_run(row: Row) -> MeasuredRun:
    """A row of oom_outcomes.csv: its columns are raw, so they are brought to memory.csv's words first."""
    quant = row.get("quantization", "").lower()
    kind = next((word for word in ("nf4", "fp4", "int8") if word in quant), "none" if "none" in quant else "")
    packed = kind and ("double" in quant or quant.endswith("-dq"))
    method = first_word(row.get("method", ""))
    row = {
        **row,
        "quant_norm": f"{kind}-dq" if packed else kind or (_default_quant(method)),
        "gc_norm": {"true": "full", "yes": "full", "false": "none", "no": "none"}.get(
            first_word(row.get("gradient_checkpointing", "")), ""
        ),
        "shape_known": "exact",
    }
    # it ran out of memory whatever it did not say: what is not stated is taken as what needs least
    row = {**row, **{name: words for name, words in _FRUGAL.items() if not text_of(row, name)}}
    if not text_of(row, "gpu") or gpu_key(row["gpu"]) is None:
        raise SetAside(f"gpu {row['gpu']!r} is not in the catalogue: its capacity is not known")
    return MeasuredRun.model_construct(
        kind="published",
        source=row.get("source", ""),
        reference=" ".join(filter(None, (row.get("url_or_repo_path"), row.get("commit")))),
        date=day_of(row),
        outcome="out_of_memory",
        request=_request(row),
        measured=Figures(),
        hardware=_hardware(row),
        libraries=libraries(row),
        metric="device",
    )


# ---- speed


def throughput_run(row: Row) -> MeasuredRun:
    """A row of throughput.csv."""
    return _timed(row, throughput_request(row), number(row, "tokens_per_s_per_gpu"))


def timed_run(row: Row) -> MeasuredRun:
    """A row of memory.csv, for the speed that it carries."""
    return _timed(row, timed_request(row), speed(row))


def _timed(row: Row, request: Request, tokens_per_s: float | None) -> MeasuredRun:
    if not tokens_per_s:
        raise SetAside("no speed is given")
    return MeasuredRun.model_construct(
        kind="published",
        source=row.get("source", ""),
        reference=" ".join(filter(None, (row.get("url_or_repo_path"), row.get("commit")))),
        date=day_of(row),
        request=request,
        measured=Figures(tokens_per_s=tokens_per_s),
        hardware=_hardware(row),
        libraries=libraries(row),
        metric="tokens_per_s",
        config_key=row.get("config_key", ""),
        notes=tuple(filter(None, (row.get("notes") or row.get("note"),))),
    )


# ---- what every table says


def _hardware(row: Row) -> Hardware:
    key = gpu_key(row.get("gpu", ""))
    record = find_gpu(key) if key else None
    return Hardware.model_construct(
        gpu=row.get("gpu", ""),
        num_gpus=whole(row, "n_gpus", 1),
        usable_bytes=record.usable_bytes if record else None,
        compute_capability=record.compute_capability if record else None,
    )
