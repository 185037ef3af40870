"""What is asked of a merge, beside the model, the method and the GPU, which stand in a `Request`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from peftplan.request import COUNTED
from peftplan.units import GB, parse_size_bytes

DeviceName = Literal["both", "gpu", "cpu"]

MAX_TASKS = 10**9
MAX_SHARD_BYTES = 10**15
MAX_RATE = 10**6


def _sized(value: Any) -> Any:
    """`5GB` or `24MiB` as bytes; what is no text is left as it is."""
    return parse_size_bytes(value) if isinstance(value, str) else value


class Merging(BaseModel):
    """One merge: where it runs, how it is saved, and how fast disk, link and host are."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    on: Annotated[DeviceName, Field(description="where the merge runs")] = "both"
    safe_merge: Annotated[bool, Field(description="peft looks for NaNs in a copy before it replaces a weight")] = (
        False
    )
    max_shard_size: Annotated[
        int,
        Field(ge=1, le=MAX_SHARD_BYTES, strict=True, description="largest file of the merged model, such as 5GB"),
        BeforeValidator(_sized),
    ] = 50 * GB
    tasks: Annotated[
        int,
        Field(ge=1, le=MAX_TASKS, strict=True, description="tasks, each with an adapter of its own, on disk"),
        COUNTED,
    ] = 1000
    disk_gb_per_s: Annotated[
        float | None,
        Field(gt=0, le=MAX_RATE, description="disk, 10^9 bytes a second; default 0.131, a plain cloud disk's"),
    ] = None
    link_gb_per_s: Annotated[
        float | None,
        Field(gt=0, le=MAX_RATE, description="host to GPU, 10^9 bytes a second; default the card's PCIe lanes"),
    ] = None
    host_gb_per_s: Annotated[
        float,
        Field(gt=0, le=MAX_RATE, description="host memory, 10^9 bytes a second; default two channels of DDR4-3200"),
    ] = 51.2
    host_gflop_per_s: Annotated[
        float, Field(gt=0, le=MAX_RATE, description="fp32 products on the host, 10^9 flop a second; an assumption")
    ] = 200.0


# Fields of a request that a merge or its checkpoints depend on; the others are of the training step.
MERGED = (
    *("model", "method", "rank", "alpha", "targets", "bias", "modules_to_save", "method_options"),
    *("adapter_dtype", "base_dtype", "precision", "optimizer", "optimizer_options", "loop", "gpu", "engine"),
    *("transformers", "peft", "bitsandbytes", "torch"),
)


def is_merged(field: str) -> bool:
    """Whether a field of a request means anything to a merge: those above, and how the base is packed."""
    return field in MERGED or field == "double_quant" or field.startswith("quant")
