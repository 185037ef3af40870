"""The service: a request and a server's options in, an answer out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from peftplan.errors import BadInput
from peftplan.memory.intervals import is_certain
from peftplan.memory.kv_cache import CacheForm, cached_layers
from peftplan.memory.overheads import outside
from peftplan.pricing import check_run
from peftplan.report import SCHEMA_VERSION, GpuFit, ModelFacts
from peftplan.request import Request
from peftplan.resolve import Plan, resolve
from peftplan.serving import answers
from peftplan.serving.adapters import Served, base_disk_bytes, served
from peftplan.serving.device import Shape, limits, shape_of
from peftplan.serving.inference import of_inference, packed_base
from peftplan.serving.money import copies_of, money_of
from peftplan.serving.notes import fit_notes, server_notes, speed_notes
from peftplan.serving.options import Serving, check_request, is_served, settled
from peftplan.serving.speed import Passes, speed_of
from peftplan.specs.formats import FLOAT_DTYPES, FP8
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec

_LONGEST = 10**6  # tokens of a sequence that are searched up to where the model states no limit


@dataclass(slots=True)
class _Server:
    """All that is known of a server before anything is answered about it."""

    plan: Plan
    serving: Serving
    models: Served
    shape: Shape
    cache_dtype: str
    packed: str | None  # the format of a base that is multiplied as it is packed

    @property
    def room_bytes(self) -> int | None:
        """What the server may take of its GPU; None without one."""
        gpu = self.plan.gpu
        return None if gpu is None else int(gpu.usable_bytes * self.serving.memory_frac)


def serve(request: Request, serving: Serving) -> answers.ServeReport:
    """What a base and its adapters take at inference, how fast tokens come, and what a tenant costs.

    `request` names the model, the adapters' method and the GPU; what it says of training is refused.
    """
    server = _settled(request, serving)
    plan, serving, models, shape = server.plan, server.serving, server.models, server.shape
    storage, fit, room = _storage(server), _fit(server), server.room_bytes
    speed = _speed(server)
    copies = copies_of(shape, serving.adapters, storage, room, plan.request.gpus, fit is not None and fit.fits)
    money: answers.Money | None = None
    money_notes: tuple[str, ...] = ()
    if plan.gpu is not None:
        money, money_notes = money_of(plan.request, plan.gpu, serving.adapters, speed, copies)
    most = _limits(server)
    return answers.ServeReport.model_construct(
        schema_version=SCHEMA_VERSION,
        request=_asked(server),
        serving=serving.model_dump(),
        model=ModelFacts.model_construct(
            id=plan.found.id,
            architecture=models.base.family,
            num_params=models.num_params,
            num_active_params=models.num_params - models.base.inactive_params,
        ),
        adapter=_adapter(server),
        storage=storage,
        cache=shape.cache(server.cache_dtype),
        device=_device(shape),
        gpu=fit,
        limits=most,
        speed=speed,
        copies=copies,
        money=money,
        versions=plan.versions.by_name(),
        notes=(
            *(fit_notes(shape, room, most) if fit is not None and room is not None and not fit.fits else ()),
            *server_notes(plan, models, shape),
            *speed_notes(plan.gpu, speed, shape, plan.method_spec.base_dtype.short),
            *money_notes,
        ),
    )


def _settled(request: Request, serving: Serving) -> _Server:
    """Defaults filled in, contradictions refused, models built."""
    check_request(request)
    packed = packed_base(request, serving)
    plan = resolve(check_run(of_inference(request, packed)))
    assert plan.request.seq_len is not None
    distinct, serving = serving.distinct, settled(serving, plan.request.seq_len)
    models = served(plan, serving, packed)
    _check_generates(models.base)
    step = _step(plan, serving, models.base)
    cached = plan.method_spec.base_dtype
    if serving.kv_dtype != "auto":
        cached = FP8 if serving.kv_dtype == FP8.short else FLOAT_DTYPES[serving.kv_dtype]
    form = CacheForm(cached.itemsize, serving.kv_block if serving.server == "paged" else None)
    shape = shape_of(models, serving, step, form, outside(step.compute_capability), plan.request.seq_len)
    if not shape.mixes:
        serving = shape.serving = _one_at_a_time(plan, serving, distinct)
    return _Server(plan, serving, models, shape, cached.short, None if packed is None else packed.name)


def _asked(server: _Server) -> dict[str, Any]:
    """The request, of which a server reads these fields alone."""
    fields = server.plan.request.model_dump()
    asked = {name: value for name, value in fields.items() if is_served(name)}
    return asked if server.packed is None else {**asked, "quant": server.packed}


def _speed(server: _Server) -> answers.Speed | None:
    plan = server.plan
    if plan.gpu is None:
        return None
    spec = plan.method_spec
    base, adapter = spec.base_dtype, spec.adapter_dtype
    return speed_of(Passes(server.shape, plan.gpu, base.short, base.itemsize, adapter.itemsize))


def _check_generates(model: ModelSpec) -> None:
    if not cached_layers(model):
        raise BadInput(
            f"serve answers for decoders that generate token by token, and {model.family} is none; "
            "take a causal language model (see `peftplan models`)"
        )


def _one_at_a_time(plan: Plan, serving: Serving, distinct: int | None) -> Serving:
    """The options where a batch holds one adapter; more of them are refused if they were asked for."""
    if distinct is not None and distinct > 1:
        raise BadInput(
            f"--distinct {distinct}: adapters of --method {plan.method.name} share no batch with --server "
            f"{serving.server}; give --distinct 1, or take --method lora"
        )
    return serving.model_copy(update={"distinct": 1})


def _step(plan: Plan, serving: Serving, model: ModelSpec) -> StepSpec:
    """How passes run; a paged server attends with kernels of its own, played as flash where that is known."""
    if serving.server != "paged":
        return plan.step
    flash = plan.step.compute_capability >= (8, 0) and plan.request.base_dtype != "fp32"  # 16 bits only
    kinds = ("flash", "sdpa", "eager") if flash else ("sdpa", "eager")
    found = [kind for kind in kinds if kind in model.attention_kinds]
    return replace(plan.step, attention=found[0] if found else "eager")


def _storage(server: _Server) -> answers.Storage:
    models, serving = server.models, server.serving
    assert serving.resident is not None
    assert serving.hot is not None
    base, adapters = base_disk_bytes(models.stored), serving.adapters * models.disk_bytes
    return answers.Storage.model_construct(
        base_disk_bytes=base,
        adapters_disk_bytes=adapters,
        disk_bytes=base + adapters,
        resident=serving.resident,
        host_bytes=serving.resident * models.bytes,
        hot=serving.hot,
        hot_bytes=serving.hot * models.hot_bytes,
    )


def _adapter(server: _Server) -> answers.AdapterFacts:
    models, shape = server.models, server.shape
    return answers.AdapterFacts.model_construct(
        method=server.plan.method.name,
        num_params=models.num_adapter_params,
        dtype=server.plan.method_spec.adapter_dtype.short,
        bytes=models.bytes,
        disk_bytes=models.disk_bytes,
        hot_bytes=models.hot_bytes,
        mixes=shape.mixes,
        stated=server.serving.adapter_size is not None,
        prompt_positions=shape.prompt_positions,
    )


def _device(shape: Shape) -> answers.Device:
    breakdown, around = shape.breakdown(), shape.outside
    inside = breakdown.bytes - around.middle_bytes
    return answers.Device.model_construct(
        device_bytes=breakdown.bytes,
        spread=answers.Spread.model_construct(
            low_bytes=inside + around.low_bytes,
            high_bytes=inside + around.high_bytes,
            basis=f"the range of the CUDA context alone, as no server was measured here; {around.basis}",
        ),
        breakdown=breakdown,
    )


def _fit(server: _Server) -> GpuFit | None:
    gpu, room, shape = server.plan.gpu, server.room_bytes, server.shape
    if gpu is None or room is None:
        return None
    total, around = shape.total_bytes(shape.asked), shape.outside
    fits = total <= room
    low = total - around.middle_bytes + around.low_bytes
    high = total - around.middle_bytes + around.high_bytes
    return GpuFit.model_construct(
        name=gpu.name,
        num_gpus=server.plan.request.gpus,
        sold_bytes=gpu.sold_bytes,
        driver_bytes=gpu.driver_bytes,
        usable_bytes=gpu.usable_bytes,
        fits=fits,
        certain=is_certain(fits, low, high, room),
        headroom_bytes=room - total,
    )


def _limits(server: _Server) -> answers.Limits:
    room = server.room_bytes
    if room is None:
        return answers.Limits.model_construct(
            max_concurrency=None, max_hot=None, max_seq_len=None, cache_tokens=None
        )
    return limits(server.shape, room, server.serving.adapters, server.plan.max_seq_len or _LONGEST)
