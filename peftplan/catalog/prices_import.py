"""Price lists of others as offers: SkyPilot's CSV and gpuhunt's, read as data and nothing else.

SkyPilot (`catalogs/*/CLOUD/vms.csv`): InstanceType, AcceleratorName, AcceleratorCount, GpuInfo, Price, SpotPrice,
Region, AvailabilityZone and others, in any order. gpuhunt (`PROVIDER.csv`): instance_name, location, price,
gpu_count, gpu_name, gpu_memory, spot and others; a spot price stands in a row of its own.

A list in another currency, or none that is known, is refused as a whole. A row that is no price of a whole GPU of
the catalogue is skipped, and told with its line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from peftplan.catalog.prices import Offer, canonical_provider, newest
from peftplan.catalog.prices_gpus import match_gpu
from peftplan.catalog.prices_rows import (
    MAX_ROWS,
    Row,
    header_of,
    listed_price,
    named_row,
    one_line,
    refuse_other_money_columns,
    sane_price,
    split_rows,
    whole_count,
)
from peftplan.errors import BadInput, shown

SKYPILOT = frozenset({"InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "Region"})
GPUHUNT = frozenset({"instance_name", "location", "price", "gpu_count", "gpu_name", "spot"})

_PROVIDER = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
_Prices = tuple[Decimal | None, Decimal | None]  # on demand, spot


@dataclass(slots=True)
class Imported:
    """What a list held: offers by machine, and what was skipped, by reason with the lines of the file."""

    kind: str
    offers: dict[tuple[str, str, int, str, str], Offer] = field(default_factory=dict)
    skipped: dict[str, list[int]] = field(default_factory=dict)
    num_rows: int = 0
    num_without_gpu: int = 0

    def skip(self, reason: str, line: int) -> None:
        """Remember a line that is no offer, and why."""
        self.skipped.setdefault(reason, []).append(line)

    def add(self, offer: Offer) -> None:
        """Keep the lowest price of a machine in its region, on demand and spot each."""
        before = self.offers.get(offer.key())
        if before is not None:
            usd = _lowest(before.usd_per_h, offer.usd_per_h)
            spot = _lowest(before.spot_usd_per_h, offer.spot_usd_per_h)
            if (usd, spot) == (before.usd_per_h, before.spot_usd_per_h):
                return
            offer = replace(before, usd_per_h=usd, spot_usd_per_h=spot)
        self.offers[offer.key()] = offer

    def all(self) -> tuple[Offer, ...]:
        """The offers; a spot price that is not below the one on demand is a list's way of having none."""
        found = []
        for offer in self.offers.values():
            usd, spot = offer.usd_per_h, offer.spot_usd_per_h
            repeated = usd is not None and spot is not None and spot >= usd
            found.append(replace(offer, spot_usd_per_h=None) if repeated else offer)
        return newest(found)


def _lowest(*prices: Decimal | None) -> Decimal | None:
    return min((price for price in prices if price is not None), default=None)


@dataclass(frozen=True, slots=True)
class _List:
    """Where a list comes from."""

    provider: str
    date: str
    source: str


def provider_name(text: str) -> str:
    """A provider's name in one spelling. Raises ValueError for what is none."""
    name = canonical_provider(text)
    if not _PROVIDER.fullmatch(name):
        raise ValueError(f"{shown(text)} is no provider's name")
    return name


def import_prices(lines: Iterable[str], provider: str, date: str, source: str) -> Imported:
    """The offers of a list's text, for a provider and the day its prices were read.

    Raises BadInput where the list cannot be used at all.
    """
    rows = split_rows(lines)
    header = header_of(next(rows, None), source)
    refuse_other_money_columns(header, source)
    if set(header) >= SKYPILOT:
        found, read = Imported("SkyPilot"), _skypilot
    elif set(header) >= GPUHUNT:
        found, read = Imported("gpuhunt"), _gpuhunt
    else:
        raise BadInput(
            f"{source} is no price list that is known: SkyPilot's has the columns {', '.join(sorted(SKYPILOT))}, "
            f"gpuhunt's {', '.join(sorted(GPUHUNT))}; it has {shown(', '.join(header), 200)}"
        )
    read(_named(rows, header, found, source), found, _List(provider, date, source))
    return found


def _named(
    rows: Iterable[tuple[int, list[str] | None]], header: Sequence[str], found: Imported, source: str
) -> Iterator[Row]:
    for line, cells in rows:
        found.num_rows += 1
        if found.num_rows > MAX_ROWS:
            raise BadInput(f"{source} has more than {MAX_ROWS:,} rows; give one with fewer")
        try:
            row = named_row(header, line, cells, source)
        except ValueError as error:
            found.skip(str(error), line)
        else:
            yield row


def _each(rows: Iterable[Row], found: Imported, take: Callable[[Row], None]) -> None:
    for row in rows:
        _take(row, found, take)


def _take(row: Row, found: Imported, take: Callable[[Row], None]) -> None:
    try:
        take(row)
    except ValueError as error:
        found.skip(str(error), row.line)


# ---- SkyPilot


def _skypilot(rows: Iterable[Row], found: Imported, of: _List) -> None:
    """Rows of a SkyPilot list. Google's price a GPU and the machine around it apart: they are summed."""
    hosts: dict[tuple[str, str], _Prices] = {}
    alone: list[Row] = []

    def take(row: Row) -> None:
        if not row["AcceleratorName"]:
            found.num_without_gpu += 1
            _remember_host(hosts, row)
        elif not row["InstanceType"]:
            alone.append(row)
        else:
            _take_skypilot(row, found, of, row["InstanceType"], None)

    def take_alone(row: Row) -> None:
        host = _host(row["AcceleratorName"], whole_count(row["AcceleratorCount"]))
        prices = hosts.get((host, row["AvailabilityZone"] or row["Region"]))
        if prices is None or prices[0] is None:
            raise ValueError("the GPU is priced without a machine, and the list has no price of one for it")
        _take_skypilot(row, found, of, f"{host}+{row['AcceleratorName']}", prices)

    _each(rows, found, take)
    _each(alone, found, take_alone)


def _remember_host(hosts: dict[tuple[str, str], _Prices], row: Row) -> None:
    try:
        prices = listed_price(row["Price"]), listed_price(row["SpotPrice"])
    except ValueError:  # a machine without GPU is no loss
        return
    for place in {row["AvailabilityZone"], row["Region"]} - {""}:
        hosts.setdefault((row["InstanceType"], place), prices)


def _host(name: str, count: int) -> str:
    """Google's machine for so many of a GPU, as its pages pair them."""
    if name == "L4":
        return {1: "g2-standard-4", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"}.get(count, "")
    if name == "A100" and count == 16:
        return "a2-megagpu-16g"
    family = {
        "A100": "a2-highgpu",
        "A100-80GB": "a2-ultragpu",
        "H100": "a3-highgpu",
        "H100-MEGA": "a3-megagpu",
        "H200": "a3-ultragpu",
        "B200": "a4-highgpu",
    }.get(name)
    return f"{family}-{count}g" if family else f"n1-standard-{8 * count}"


def _take_skypilot(row: Row, found: Imported, of: _List, instance: str, host: _Prices | None) -> None:
    """One row as an offer; `host` is what the machine around the GPUs costs where that is listed apart."""
    count = whole_count(row["AcceleratorCount"])
    if not count:
        raise ValueError("it has a part of a GPU only")
    usd, spot = listed_price(row["Price"]), listed_price(row["SpotPrice"])
    if usd is not None:
        usd = sane_price(usd, count)
    spot = sane_price(spot, count) if spot and spot != usd else None
    if host is not None:
        usd = None if usd is None else usd + (host[0] or 0)
        spot = None if spot is None or host[1] is None else spot + host[1]
    matched = match_gpu(one_line(row["AcceleratorName"]), one_line(instance), count, _memory(row["GpuInfo"]))
    if matched.key is None:
        raise ValueError(matched.reason)
    summed = "GPU and machine summed" if host is not None else ""
    note = "; ".join(part for part in (summed, matched.unsure) if part)
    place = (row["AcceleratorName"], count, instance, row["Region"])
    found.add(_offer(of, matched.key, place, (usd, spot), note))


def _memory(info: str) -> float | None:
    """The memory in a GpuInfo, which is a Python or JSON text: one number is looked for, nothing is evaluated."""
    match = re.search(r"SizeInMiB\W{1,6}(\d{1,9}(?:\.\d{1,3})?)", info, re.ASCII)
    return float(match[1]) if match and float(match[1]) > 0 else None


# ---- gpuhunt


def _gpuhunt(rows: Iterable[Row], found: Imported, of: _List) -> None:
    def take(row: Row) -> None:
        count = whole_count(row["gpu_count"])
        listed = row["gpu_name"]
        if not count or not listed:
            found.num_without_gpu += 1
            return
        price = listed_price(row["price"])
        matched = match_gpu(one_line(listed), one_line(row["instance_name"]), 1, _size(row["gpu_memory"]))
        if matched.key is None:
            raise ValueError(matched.reason)
        price = None if price is None else sane_price(price, count)
        prices = (None, price) if row["spot"].lower() == "true" else (price, None)
        provider = provider_name(row["provider"]) if row["provider"] else of.provider
        place = (listed, count, row["instance_name"], row["location"])
        found.add(_offer(replace(of, provider=provider), matched.key, place, prices, matched.unsure))

    _each(rows, found, take)


def _size(text: str) -> float | None:
    """The memory of one GPU in GB, as listed."""
    if not text:
        return None
    if not re.fullmatch(r"\d{1,6}(?:\.\d{1,6})?", text, re.ASCII):
        raise ValueError("the memory is no number")
    return float(text) or None


def _offer(of: _List, gpu: str, place: tuple[str, int, str, str], prices: _Prices, note: str) -> Offer:
    """An offer of a listed name, a count, a machine and a region. Raises ValueError where it has no price."""
    if prices == (None, None):
        raise ValueError("it has no price")
    listed, count, instance, region = place
    return Offer(
        of.provider,
        gpu,
        one_line(listed),
        count,
        one_line(instance),
        one_line(region),
        *prices,
        of.date,
        of.source,
        "medium" if note else "high",
        note,
    )
