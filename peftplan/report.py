"""The report: one answer, in the shape of the public JSON interface. All bytes are integers of one device."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from peftplan.breakdown import Node

SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    # schemas are built when they are first used: a report is written out far more often than validated
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class ModelFacts(_Frozen):
    """The model that was answered for."""

    id: str
    architecture: str
    num_params: int
    num_active_params: int


class InitialisationFacts(_Frozen):
    """What a method computes once before training, from weights, inputs or gradients (`reads`).

    `beside_bytes` are the most that is allocated beside the model, passes of the model and solvers' workspaces not
    counted; `peak_allocated_bytes` the same with the loaded model. `num_flop` are those of the factorisations in
    fp32, and `least_s` what they would take at the card's rate of products, which solvers do not reach: no less.
    `disk_bytes` are written beside the adapter, for what `disk` says.
    """

    reads: str
    beside_bytes: int
    peak_allocated_bytes: int
    num_flop: float
    least_s: float | None
    disk_bytes: int
    disk: str


class MethodFacts(_Frozen):
    """What trains, and what a saved adapter takes (in the adapter's format; 0 without an adapter)."""

    kind: str
    num_trainable_params: int
    trainable_frac: float
    adapter_checkpoint_bytes: int
    initialisation: InitialisationFacts | None = None


class Interval(_Frozen):
    """Where `device_bytes` is expected to lie, how often, and on what ground."""

    low_bytes: int
    high_bytes: int
    coverage: float
    basis: str


class ResidentBytes(_Frozen):
    """State that lives from step to step: requested bytes, before the allocator's rounding."""

    weights: int
    adapters: int
    gradients: int
    master_weights: int
    optimizer_states: int


class LoadBytes(_Frozen):
    """While the model is loaded: the most on the device, and on the host beside the process itself."""

    device_peak_bytes: int
    host_peak_bytes: int
    checkpoint_bytes: int


class MemoryFigures(_Frozen):
    """Three totals, never mixed: allocated and reserved by torch's allocator, and the process on the device.

    `evaluation_peak_bytes` and `load` are the closed form's; a trace of a model that it does not know has none.
    """

    peak_moment: str
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    device_bytes: int
    interval: Interval
    resident: ResidentBytes
    activations_bytes: int
    moments: dict[str, int]
    evaluation_peak_bytes: int | None
    load: LoadBytes | None
    optimizer_paged_bytes: int = 0  # states in managed memory, which `device_bytes` has, at worst, on the device
    optimizer_host_bytes: int = 0  # what an offloaded optimizer keeps in the host's memory: in no other figure


class Memory(MemoryFigures):
    """The same with the parts of the peak, which sum to `peak_allocated_bytes`."""

    breakdown: Node


class GpuFit(_Frozen):
    """The card, its three capacities, and whether the run completes on it."""

    name: str
    num_gpus: int
    sold_bytes: int
    driver_bytes: int
    usable_bytes: int
    fits: bool
    certain: bool
    headroom_bytes: int


class TimeInterval(_Frozen):
    """Where `step_s` is expected to lie, how often, and on what ground."""

    low_s: float
    high_s: float
    coverage: float
    basis: str


class Time(_Frozen):
    """One optimizer step: all its micro-batches, on every GPU at once.

    `terms` are the seconds of its parts and sum to `step_s`; `bound` names what most of them wait for.
    """

    step_s: float
    tokens_per_s: float  # of all GPUs together
    bound: str
    terms: dict[str, float]
    interval: TimeInterval
    num_flop: float  # a GPU computes in a step, recomputation included
    hfu_frac: float | None  # of the GPU's peak rate, with what is computed twice; None without a peak
    mfu_frac: float | None  # the same without it


class DataFacts(_Frozen):
    """A training set's lengths in tokens, and what batches make of them in one pass.

    `waste_frac` of the computed tokens is padding; `truncated_frac` of the set's tokens lies beyond the sequence
    length and is lost.
    """

    num_examples: int
    num_tokens: int
    median_length: int
    longest: int
    mean_computed_length: float
    waste_frac: float
    truncated_frac: float
    num_truncated: int
    num_empty: int
    num_broken: int
    broken_lines: tuple[int, ...]
    sampled_frac: float
    basis: str


class Cost(_Frozen):
    """A whole run, in hours and dollars: low, middle and high."""

    hours: float
    hours_low: float
    hours_high: float
    usd: float
    usd_low: float
    usd_high: float
    usd_per_gpu_hour: float
    price_source: str
    price_date: str
    num_tokens: int
    num_steps: int
    energy_kwh: float
    parts: dict[str, float]  # hours of training, evaluation, checkpoints, ...: they sum to `hours`
    data: DataFacts | None = None
    notes: tuple[str, ...] = ()


class RecipeTotal(_Frozen):
    """The same run under another precision recipe."""

    precision: str
    peak_allocated_bytes: int
    bytes_per_param: float


class Report(_Frozen):
    """One run's answer."""

    schema_version: int
    request: dict[str, Any]
    model: ModelFacts
    method: MethodFacts
    memory: Memory
    gpu: GpuFit | None
    time: Time | None = None
    cost: Cost | None = None
    recipes: tuple[RecipeTotal, ...] = ()
    versions: dict[str, str]
    notes: tuple[str, ...]


class Change(_Frozen):
    """One change of a run: what it is, what it saves at the peak, and whether it alone makes the run fit."""

    change: str
    saves_bytes: int
    fits: bool


class Term(_Frozen):
    """One row of a comparison: a part of the peak, in the bytes of each column."""

    name: str
    bytes: tuple[int, ...]


class Difference(_Frozen):
    """Tensors alike that only one of two columns holds, or that one holds more of: bytes by column."""

    name: str  # part of the peak
    module: str
    operation: str
    tensor: str  # type and shape
    bytes: tuple[int, int]


class Comparison(_Frozen):
    """Runs side by side; in each column the terms sum to its `peak_allocated_bytes`.

    `differences` are told where two columns are the same run by two engines, the largest first.
    """

    columns: tuple[Report, ...]
    terms: tuple[Term, ...]
    differences: tuple[Difference, ...] = ()

    @classmethod
    def of(cls, columns: tuple[Report, ...]) -> Comparison:
        """The comparison of these answers: every part that any of their peaks has."""
        parts = [{node.name: node.bytes for node in column.memory.breakdown.children} for column in columns]
        names: list[str] = []
        for part in parts:
            after = 0  # a name that is new stands behind the one before it
            for name in part:
                if name not in names:
                    names.insert(after, name)
                after = names.index(name) + 1
        terms = tuple(
            Term.model_construct(name=name, bytes=tuple(part.get(name, 0) for part in parts)) for name in names
        )
        return cls.model_construct(columns=columns, terms=terms)
