"""The service: a request and a merge's options in, an answer out."""

from __future__ import annotations

from collections.abc import Sequence

from peftplan.catalog import find_gpu
from peftplan.errors import BadInput
from peftplan.merging import answers
from peftplan.merging.options import Merging, is_merged
from peftplan.merging.seconds import rates_of
from peftplan.merging.stored import on_disk
from peftplan.merging.ways import Play, Ways, closed
from peftplan.report import SCHEMA_VERSION, ModelFacts
from peftplan.request import Request
from peftplan.resolve import REFERENCE_GPU, Plan, resolve

_ALIKE_FRAC = 0.05  # of the seconds: ways that differ by less are as fast as each other

_WHY_UNPACK = (
    "the adapter was trained beside the rounded weights: unpacked, they are what it was trained on, and the sum is "
    "rounded once, to 16 bits"
)
_WHY_RELOAD = (
    "it needs no packed base on a GPU; the original weights differ from those that the adapter was trained beside "
    "by what packing lost, so the merged model is not quite the one that was trained"
)
_PACKED_LOSES = (
    "merging into {0} weights rounds every sum to {0} again, which can lose what was learned: peft warns of it, "
    "and practitioners advise against it (merge-unpacked); the file stays small, and unpacks in the adapters' type"
)
_TWO_VIEWS = (
    "practitioners differ on the base: unpacked weights are what the adapter saw (merge-unpacked), the original "
    "ones hold more of the model, and Unsloth merges into those unless what packing lost is large beside the "
    "adapter (merge-original)"
)
_UNMERGED = (
    "left unmerged beside the {0} base the adapter computes what was trained, at a product more for every layer: "
    "see `peftplan serve`"
)
_HOST = (
    "host memory is that of tensors: Python and its libraries take more; pages of files that were read come and go"
)
_SAVED_FROM_GPU = "saving from a GPU brings a whole file to the host at once: --max-shard-size 5GB makes it less"
_TRACED = (
    "the trace runs peft's own merge on tensors without values: copies that the host's kernels make of operands "
    "are not seen, and the merge itself counts no time"
)
_ONE_AFTER_ANOTHER = "times are bytes over the stated rates, one thing after another; downloads are not counted"


def merge(request: Request, merging: Merging | None = None, play: Play = closed) -> answers.MergeReport:
    """Ways to merge the adapter of a request into its base: memory, disk and time of each, and one that is advised.

    `play` works a merge out; methods that leave nothing to merge, or cannot be, are refused with the reason.
    """
    merging = merging or Merging()
    plan = resolve(request.model_copy(update={"checkpointing": False}))
    _check_merges(plan)
    card = plan.gpu or find_gpu(REFERENCE_GPU)
    assert card is not None
    rates = rates_of(merging, card)
    made = Ways(plan, merging, rates, card, play)
    ways = made.all()
    best, why = _recommended(ways)
    base, model = made.dense.base, made.dense.model
    num_params = base.num_params()
    written = ways[best].written_bytes if best is not None else None
    return answers.MergeReport.model_construct(
        schema_version=SCHEMA_VERSION,
        request={name: value for name, value in plan.request.model_dump().items() if is_merged(name)},
        merging=merging.model_dump(),
        model=ModelFacts.model_construct(
            id=plan.found.id,
            architecture=base.family,
            num_params=num_params,
            num_active_params=num_params - base.inactive_params,
        ),
        method=plan.method.name,
        how=plan.method.merging,
        adapter_params=sum(p.numel * n for _, p, n in model.parameters() if p.role == "adapter" and p.edge),
        ways=ways,
        recommended=best,
        why=why,
        rates=rates,
        disk=on_disk(plan, merging.tasks, written),
        versions=plan.versions.by_name(),
        notes=_notes(plan, ways, merging),
    )


def checkpoints(request: Request, tasks: int = 1000) -> answers.OnDisk:
    """What a run of any method leaves on disk, for one task and for many; no merged model."""
    return on_disk(resolve(request), tasks, None)


def _check_merges(plan: Plan) -> None:
    method = plan.method
    if not method.frozen_base or method.trained is not None:
        raise BadInput(
            f"--method {method.name} trains the base's own weights: there is nothing to merge; what is saved is "
            "the model itself"
        )
    if not method.merges:
        raise BadInput(
            f"--method {method.name} cannot be merged ({method.merging}); serve it beside the base: see "
            "`peftplan serve`"
        )


def _recommended(ways: Sequence[answers.MergeWay]) -> tuple[int | None, str]:
    """Of ways that can be taken the one that keeps most of what was trained, then the fastest, then the host."""
    open_ways = [(n, way) for n, way in enumerate(ways) if way.refused is None and way.fits is not False]
    if not open_ways:
        told = next((way.refused for way in ways if way.refused is not None), None)
        return None, told or "no way fits the GPU; --on cpu merges on the host"
    for name in ("merge", "unpack", "reload", "packed"):
        alike = [(n, way) for n, way in open_ways if way.way == name]
        if alike:
            break
    least = min(way.time.s for _, way in alike if way.time is not None)
    near = [(n, way) for n, way in alike if way.time is not None and way.time.s <= least * (1 + _ALIKE_FRAC)]
    number, way = min(near, key=lambda one: one[1].device != "cpu")
    return number, _reason(way, len(near) > 1 or len(alike) == 1, any(one.fits is False for one in ways))


def _reason(way: answers.MergeWay, alone: bool, too_large: bool) -> str:
    if way.way == "unpack":
        return _WHY_UNPACK
    if way.way == "reload":
        return _WHY_RELOAD
    if way.way == "packed":
        return "no way into 16 bits is open"
    if way.device == "gpu":
        return "the GPU holds it and is faster"
    if too_large:
        return "the GPU does not hold it, and the host gives the same weights but for rounding"
    return "disk takes most of the time, so that a GPU is hardly faster; the weights are the same but for rounding"


def _notes(plan: Plan, ways: Sequence[answers.MergeWay], merging: Merging) -> tuple[str, ...]:
    notes = [plan.found.origin, *plan.method.notes]
    quant = plan.method_spec.quant
    if quant is not None:
        notes.append(_PACKED_LOSES.format(quant.kind))
        notes.append(_TWO_VIEWS)
        notes.append(_UNMERGED.format(quant.kind))
    if any(way.device == "gpu" and way.device_bytes for way in ways):
        notes.append(_SAVED_FROM_GPU)
    if plan.gpu is None and merging.on != "cpu":
        notes.append("no GPU is named: times and workspaces on a GPU are those of an A100 80GB")
    if plan.request.engine == "trace":
        notes.append(_TRACED)
    return (*notes, _HOST, _ONE_AFTER_ANOTHER)
