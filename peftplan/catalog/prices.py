"""What GPUs rent for: dated offers of providers, from the snapshot that travels with the package and a user's own.

`prices.csv` is a snapshot, each row with the day its price was read, its source, and how far it is to be trusted.
The public lists it was made of are read as follows: where a list has a machine both under its region and again as
the cheapest one of all, it stands once; a spot price of zero, or equal to the price on demand, is a list's way of
having none; a source that names a year only is dated by its first day; Google's machines are the sum of the GPUs'
row and the host's. A user's file has the same columns and is appended to by `peftplan prices update`; of several
prices of one machine the newest counts.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime, timezone
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path

from peftplan.catalog.gpu_records import find_gpu
from peftplan.catalog.names import nearest, normalise
from peftplan.catalog.profiles import user_folder
from peftplan.errors import BadInput, shown
from peftplan.units import MIB

STALE_DAYS = 30  # prices older than this are said to be old
MAX_FILE_BYTES = 64 * MIB
# USD for one GPU and hour: what lies outside is no price of a whole GPU.
LEAST_USD, MOST_USD = Decimal("0.01"), Decimal(200)
CONFIDENCES = ("high", "medium", "low")

_SNAPSHOT = Path(__file__).with_name("prices.csv")
_PLACES = ("XDG_DATA_HOME", "HOME", "LOCALAPPDATA", "USERPROFILE")  # what a user's folder depends on
# Names that lists give one provider: the one used here.
_SAME_PROVIDER = {
    "vast": "vast.ai",
    "vastai": "vast.ai",
    "lambdalabs": "lambda",
    "lambdacloud": "lambda",
    "datacrunch": "verda",
    "amazon": "aws",
    "google": "gcp",
    "gce": "gcp",
    "do": "digitalocean",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """A machine for rent: its prices are for one hour of the whole of it, in US dollars.

    `gpu` is a key of the catalogue, empty for a card that it does not have; `listed` is the source's name for it.
    """

    provider: str
    gpu: str
    listed: str
    gpu_count: int
    instance: str
    region: str
    usd_per_h: Decimal | None
    spot_usd_per_h: Decimal | None
    date: str
    source: str
    confidence: str
    note: str

    def key(self) -> tuple[str, str, int, str, str]:
        """What two prices of one machine share."""
        return self.provider, self.gpu or normalise(self.listed), self.gpu_count, self.region, self.instance

    def per_gpu(self, spot: bool = False) -> Decimal | None:
        """USD for one GPU and hour, on demand or spot; None where there is no such price."""
        price = self.spot_usd_per_h if spot else self.usd_per_h
        return None if price is None else price / self.gpu_count


COLUMNS = tuple(field.name for field in fields(Offer))


def prices_file() -> Path:
    """Where `peftplan prices update` keeps a user's prices."""
    return _beside_profiles(*map(os.environ.get, _PLACES))


@lru_cache(maxsize=4)
def _beside_profiles(*places: str | None) -> Path:
    return user_folder().with_name("prices.csv")


def all_offers() -> tuple[Offer, ...]:
    """Every machine at its newest price, from the snapshot and the user's file."""
    return _merged(*_user_stamp())


def user_offers() -> tuple[Offer, ...]:
    """The rows of the user's own file, every date of them; a file that cannot be used is passed over, and told."""
    return _user(*_user_stamp())


def offers_for(gpu: str, provider: str | None = None, region: str | None = None) -> tuple[Offer, ...]:
    """The offers of a GPU by its key, of one provider and region where these are given."""
    return _offers_for(gpu, provider, region, _user_stamp())


def find_provider(name: str) -> str:
    """A provider's name as the catalogue has it; BadInput for one that it does not have."""
    by_name = _providers(*_user_stamp())
    found = by_name.get(_bare(canonical_provider(name)))
    if found is None:
        near = nearest(name, by_name)
        hint = f"; did you mean {by_name[near[0]]}?" if near else ""
        raise BadInput(
            f"--provider {shown(name)} is unknown; there are {', '.join(by_name.values())}{hint} "
            "(`peftplan prices update` adds prices)"
        )
    return found


def check_region(region: str, provider: str | None) -> None:
    """BadInput for a region in which the catalogue has no price, of one provider if it is given."""
    if _is_region(region, provider, _user_stamp()):
        return
    named = sorted({offer.region for offer in _of_provider(provider) if offer.region})
    of = f"{provider} has" if provider else "there are"
    listed = "; ".join(named[:12]) + ("; ..." if len(named) > 12 else "") if named else "no regions"
    raise BadInput(f"--region {shown(region)} has no price; {of} {listed} (see `peftplan prices`)")


def _of_provider(provider: str | None) -> list[Offer]:
    """Offers of one provider; of all of them, those with a region of their own."""
    if provider is None:  # a price for all regions of one provider is none for a region of another
        return [offer for offer in all_offers() if offer.region != "all"]
    return [offer for offer in all_offers() if offer.provider == provider]


def in_region(offer: Offer, region: str) -> bool:
    """Whether an offer holds in a region: its own, or a part of its name ("DK" of "Denmark, DK, EU")."""
    wanted = normalise(region)
    places = [offer.region, *offer.region.split(",")]
    return any(normalise(place) in (wanted, "all") for place in places)


def age_days(day: str, today: date | None = None) -> int:
    """Days since an ISO date."""
    today = today or datetime.now(tz=timezone.utc).date()
    return (today - date.fromisoformat(day)).days


def as_csv(offers: Iterable[Offer]) -> bytes:
    """Offers as the bytes of a prices file."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(offer, name) for name in COLUMNS] for offer in offers)
    return text.getvalue().encode()


def newest(offers: Iterable[Offer]) -> tuple[Offer, ...]:
    """Of several prices of one machine the newest, of equally new ones the last; in the order of first sight."""
    found: dict[tuple[str, str, int, str, str], Offer] = {}
    for offer in offers:
        before = found.get(offer.key())
        if before is None or offer.date >= before.date:
            found[offer.key()] = offer
    return tuple(found.values())


def canonical_provider(name: str) -> str:
    """A provider's name in one spelling: lower case, and one of several names."""
    plain = name.strip().lower()
    return _SAME_PROVIDER.get(_bare(plain), plain)


def _bare(provider: str) -> str:
    return normalise(provider).replace(".", "")


# ---- reading


@lru_cache(maxsize=1)
def snapshot_offers() -> tuple[Offer, ...]:
    """The machines of the snapshot; read once, on first use."""
    return tuple(_read(_SNAPSHOT.read_text(encoding="utf-8"), _SNAPSHOT.name))


def _user_stamp() -> tuple[Path | None, int]:
    """The user's file and when it was last written: what tells that it has to be read again."""
    try:
        path = prices_file()
        return path, path.stat().st_mtime_ns
    except (OSError, RuntimeError):
        return None, 0


@lru_cache(maxsize=2)
def _user(path: Path | None, modified: int) -> tuple[Offer, ...]:
    if path is None:
        return ()
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError("it is too large")
        return tuple(_read(path.read_text(encoding="utf-8"), path.name))
    except (OSError, ValueError) as error:
        sys.stderr.write(
            f"warning: {path} holds no prices and is passed over ({error}); `peftplan prices update` renews it "
            "once it is out of the way\n"
        )
        return ()


@lru_cache(maxsize=2)
def _merged(path: Path | None, modified: int) -> tuple[Offer, ...]:
    return newest((*snapshot_offers(), *_user(path, modified)))


@lru_cache(maxsize=2)
def _by_gpu(path: Path | None, modified: int) -> dict[str, tuple[Offer, ...]]:
    found: dict[str, list[Offer]] = {}
    for offer in _merged(path, modified):
        found.setdefault(offer.gpu, []).append(offer)
    return {gpu: tuple(offers) for gpu, offers in found.items()}


@lru_cache(maxsize=2)
def _providers(path: Path | None, modified: int) -> dict[str, str]:
    return {_bare(name): name for name in sorted({offer.provider for offer in _merged(path, modified)})}


@lru_cache(maxsize=256)
def _is_region(region: str, provider: str | None, stamp: tuple[Path | None, int]) -> bool:
    return any(in_region(offer, region) for offer in _of_provider(provider))


@lru_cache(maxsize=1024)
def _offers_for(
    gpu: str, provider: str | None, region: str | None, stamp: tuple[Path | None, int]
) -> tuple[Offer, ...]:
    return tuple(
        offer
        for offer in _by_gpu(*stamp).get(gpu, ())
        if (provider is None or offer.provider == provider) and (region is None or in_region(offer, region))
    )


def _read(text: str, where: str) -> Iterator[Offer]:
    """The offers of a prices file; ValueError names the line that is not as it has to be."""
    rows = csv.reader(text.splitlines(keepends=True), strict=True)
    header = next(rows, None)
    if header != list(COLUMNS):
        raise ValueError(f"{where} has to begin with the columns {', '.join(COLUMNS)}")
    try:
        for row in rows:
            yield _offer(row)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{where} line {rows.line_num}: {error}") from None


def _offer(row: Sequence[str]) -> Offer:
    if len(row) != len(COLUMNS):
        raise ValueError(f"{len(row)} columns instead of {len(COLUMNS)}")
    provider, gpu, listed, count, instance, region, usd, spot, day, source, confidence, note = row
    if not provider or not listed or not source:
        raise ValueError("provider, listed and source may not be empty")
    record = find_gpu(gpu) if gpu else None
    if gpu and (record is None or record.key != gpu):
        raise ValueError(f"{gpu} is no key of a GPU")
    if not count.isascii() or not count.isdigit() or not 1 <= int(count[:6]) <= 1024:
        raise ValueError(f"gpu_count is {shown(count)}")
    if date.fromisoformat(day).isoformat() != day:
        raise ValueError(f"date is {shown(day)}")
    if confidence not in CONFIDENCES:
        raise ValueError(f"confidence is {shown(confidence)}, not one of {', '.join(CONFIDENCES)}")
    prices = [_price(text, int(count)) for text in (usd, spot)]
    if prices == [None, None]:
        raise ValueError("there is no price")
    return Offer(
        provider, gpu, listed, int(count), instance, region, prices[0], prices[1], day, source, confidence, note
    )


def _price(text: str, count: int) -> Decimal | None:
    """A price of a file of ours: plain digits, within what a GPU can cost."""
    if not text:
        return None
    try:
        price = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"the price is {shown(text)}") from None
    if not price.is_finite() or not LEAST_USD <= price / count <= MOST_USD:
        raise ValueError(f"the price is {shown(text)} for {count} GPUs")
    return price
