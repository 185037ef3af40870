"""The answer of `serve`. All bytes are integers; memory is that of one GPU, storage of all adapters together."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from peftplan.breakdown import Node
from peftplan.report import GpuFit, ModelFacts


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class AdapterFacts(_Frozen):
    """One adapter: what it is made of, and what it takes.

    `disk_bytes` as saved; `hot_bytes` in GPU memory, where `--slot-rank` may give it more room than it fills;
    `mixes`: rows of one batch may each have another one. `stated`: its size was given and not computed.
    `prompt_positions` stand before every sequence.
    """

    method: str
    num_params: int
    dtype: str
    bytes: int
    disk_bytes: int
    hot_bytes: int
    mixes: bool
    stated: bool
    prompt_positions: int


class Storage(_Frozen):
    """Where adapters and the base lie: on disk, and in host memory what can be copied to the GPU at once."""

    base_disk_bytes: int
    adapters_disk_bytes: int
    disk_bytes: int
    resident: int
    host_bytes: int
    hot: int
    hot_bytes: int


class CacheRow(_Frozen):
    """Layers that keep the same: numbers of a token, the window, for how many tokens of a full sequence."""

    kind: str
    layers: int
    values_per_token: int
    window: int | None
    tokens: int
    bytes: int


class Cache(_Frozen):
    """Keys and values of sequences at their full length; `expanded_bytes` are made of latents anew at each token.

    `bytes_per_token`: one more token where no window is full; `prompt_bytes` of one sequence behind its prompt.
    """

    form: str
    dtype: str
    block_tokens: int | None
    bytes_per_token: int
    sequence_bytes: int
    prompt_bytes: int
    bytes: int
    expanded_bytes: int
    layers: tuple[CacheRow, ...]


class Spread(_Frozen):
    """Where `device_bytes` lies as far as it is known, and on what ground."""

    low_bytes: int
    high_bytes: int
    basis: str


class Device(_Frozen):
    """One GPU's memory with all that was asked for; `breakdown.bytes` is `device_bytes`."""

    device_bytes: int
    spread: Spread
    breakdown: Node


class Limits(_Frozen):
    """How far the GPU's memory goes, each alone; null where nothing of it fits, or no GPU is named."""

    max_concurrency: int | None
    max_hot: int | None
    max_seq_len: int | None
    cache_tokens: int | None  # of one pool, beside all else that was asked for


class StepBytes(_Frozen):
    """What a step reads and writes in GPU memory."""

    weights: int
    cache: int
    adapters: int
    other: int


class Decode(_Frozen):
    """One step of generation: a token for each sequence, half of the new tokens behind each prompt.

    `terms` sum to `step_s`.
    """

    step_s: float
    tokens_per_s: float
    sequence_tokens_per_s: float
    bound: str
    terms: dict[str, float]
    bytes: StepBytes
    num_flop: float
    num_launches: int


class Prefill(_Frozen):
    """One prompt, alone."""

    prompt_tokens: int
    prompt_s: float
    tokens_per_s: float
    num_flop: float


class Bypass(_Frozen):
    """What adapters cost beside their linears against an adapter merged into them, at each step of the batch."""

    flop_per_token: float
    bytes_per_step: int
    launches_per_step: int
    merged_step_s: float
    adds_s: float
    adds_frac: float
    formula: str


class Mixed(_Frozen):
    """The same step with so many different adapters in its batch."""

    distinct: int
    adapter_bytes: int
    step_s: float
    tokens_per_s: float


class Swap(_Frozen):
    """An adapter that is not in GPU memory: copied from host memory, or read from disk first."""

    bytes: int
    link: str
    link_bytes_per_s: float
    from_host_s: float
    from_disk_s: float


class Load(_Frozen):
    """The GPU kept busy: prompts one after the other between steps of generation."""

    requests_per_s: float
    generated_tokens_per_s: float
    prefill_frac: float


class Speed(_Frozen):
    """How fast tokens come on one GPU."""

    decode: Decode
    prefill: Prefill
    bypass: Bypass
    mixed: tuple[Mixed, ...]
    swap: Swap
    load: Load


class Copies(_Frozen):
    """A copy of the model for each tenant, its adapter merged in, against one base with all adapters.

    GPUs: so that none of the tenants waits for a load. `copies_per_gpu` is null where one copy takes several.
    """

    copy_bytes: int
    disk_bytes: int
    shared_disk_bytes: int
    disk_ratio: float
    copies_per_gpu: int | None
    gpus_per_copy: int | None
    num_gpus: int | None
    shared_num_gpus: int | None


class Money(_Frozen):
    """What GPUs cost by the hour and month of 730 hours, a tenant's share of it, and a million generated tokens.

    Tokens: of GPUs kept busy all the time.
    """

    usd_per_gpu_hour: float
    usd_per_gpu_hour_low: float
    usd_per_gpu_hour_high: float
    price_source: str
    price_date: str
    usd_per_hour: float
    usd_per_tenant_month: float
    usd_per_million_tokens: float | None
    copies_usd_per_hour: float | None
    copies_usd_per_tenant_month: float | None


class ServeReport(_Frozen):
    """One base and many adapters at inference."""

    schema_version: int
    request: dict[str, Any]
    serving: dict[str, Any]
    model: ModelFacts
    adapter: AdapterFacts
    storage: Storage
    cache: Cache
    device: Device
    gpu: GpuFit | None
    limits: Limits
    speed: Speed | None
    copies: Copies
    money: Money | None
    versions: dict[str, str]
    notes: tuple[str, ...]
