"""Copies of the model against one base with adapters: disks, GPUs, and what a tenant pays of them."""

from __future__ import annotations

from peftplan.catalog import GpuRecord
from peftplan.catalog.prices import STALE_DAYS, age_days, offers_for
from peftplan.cost.price import PriceRange, own_price, price_range
from peftplan.memory.overheads import cublas_workspace_bytes
from peftplan.request import Request
from peftplan.serving import answers
from peftplan.serving.device import Demand, Shape
from peftplan.units import HOUR_S, MILLION

MONTH_H = 730  # 8,760 hours of a year over 12


def copies_of(
    shape: Shape, num_tenants: int, storage: answers.Storage, room_bytes: int | None, num_gpus: int, fits: bool
) -> answers.Copies:
    """A copy for each tenant, in the base's format before it was packed, with a sequence's cache of its own.

    Where a copy exceeds a GPU it is cut over as few as could hold its bytes: a bound, since cutting costs memory.
    """
    base = shape.served.base
    weights = [(p, n) for _, p, n in base.parameters() if p.role == "weight"]
    disk = num_tenants * sum(2 * p.numel * n for p, n in weights)
    copy = sum(p.numel * p.dtype.itemsize * n for p, n in weights)
    per_gpu = per_copy = gpus = None
    if room_bytes is not None:
        alone = Demand(1, 0, shape.asked.seq_len)
        outside = shape.outside.middle_bytes + cublas_workspace_bytes(shape.step.compute_capability)
        room = room_bytes - outside - max(shape.pass_bytes(alone))
        held = copy + shape.sequence_bytes(alone)
        if room >= held:
            per_gpu = room // held
            gpus = -(-num_tenants // per_gpu)
        elif room > 0:
            per_copy = -(-held // room)
            gpus = num_tenants * per_copy
    return answers.Copies.model_construct(
        copy_bytes=copy,
        disk_bytes=disk,
        shared_disk_bytes=storage.disk_bytes,
        disk_ratio=disk / storage.disk_bytes,
        copies_per_gpu=per_gpu,
        gpus_per_copy=per_copy,
        num_gpus=gpus,
        shared_num_gpus=num_gpus if fits else None,
    )


def money_of(
    request: Request, gpu: GpuRecord, num_tenants: int, speed: answers.Speed | None, copies: answers.Copies
) -> tuple[answers.Money | None, tuple[str, ...]]:
    """Dollars of GPUs that run all the time, and notes; none where no price is known."""
    price = _price(request, gpu)
    if price is None:
        return None, (f"no cost: no {'spot ' * request.spot}price of {gpu.name} is known; --price states one",)
    hourly = request.gpus * price.middle
    alone = None if copies.num_gpus is None else copies.num_gpus * price.middle
    return (
        answers.Money.model_construct(
            usd_per_gpu_hour=price.middle,
            usd_per_gpu_hour_low=price.low,
            usd_per_gpu_hour_high=price.high,
            price_source=price.source,
            price_date=price.date,
            usd_per_hour=hourly,
            usd_per_tenant_month=hourly * MONTH_H / num_tenants,
            usd_per_million_tokens=None if speed is None else _per_million(price.middle, speed),
            copies_usd_per_hour=alone,
            copies_usd_per_tenant_month=None if alone is None else alone * MONTH_H / num_tenants,
        ),
        (*price.notes, *_age(price)),
    )


def _per_million(usd_per_gpu_hour: float, speed: answers.Speed) -> float:
    return usd_per_gpu_hour / HOUR_S / speed.load.generated_tokens_per_s * MILLION


def _price(request: Request, gpu: GpuRecord) -> PriceRange | None:
    if request.price is not None:
        return own_price(request.price)
    return price_range(offers_for(gpu.key, request.provider, request.region), request.spot, request.gpus)


def _age(price: PriceRange) -> list[str]:
    if not price.date or age_days(price.date) <= STALE_DAYS:
        return []
    return [f"this price is more than {STALE_DAYS} days old: `peftplan prices update` adds newer ones"]
