"""`peftplan prices`: what GPUs rent for; `peftplan prices update --from FILE|URL` adds newer prices."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timezone
from typing import TYPE_CHECKING, Any

from peftplan.cli.catalogue import Row, rows_as_csv, rows_schema
from peftplan.cli.options import gpu_names
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.progress import progress_bar
from peftplan.cli.spec import Argument, Command, Option, switch
from peftplan.errors import EXIT_OK, BadInput, NotFound, shown

if TYPE_CHECKING:
    from peftplan.catalog.prices import Offer
    from peftplan.catalog.prices_import import Imported

FIELDS = {
    "gpu": "key in the catalogue of GPUs; empty for a card that it does not have",
    "listed": "the source's name of the GPU",
    "gpu_count": "GPUs in the machine",
    "usd_per_gpu_hour": "on demand, or null",
    "spot_usd_per_gpu_hour": "interruptible, or null",
    "usd_per_h": "of the whole machine, on demand, or null",
    "spot_usd_per_h": "of the whole machine, interruptible, or null",
    "provider": "who rents it out",
    "instance": "the machine's name",
    "region": "where; all: everywhere the provider is; empty: not stated",
    "date": "the day the price was read",
    "age_days": "days since then",
    "source": "where it was read",
    "confidence": "high, medium or low",
    "note": "what is particular, or empty",
}
_LINES_KEPT = 20  # of the skipped rows of one reason


def run(given: dict[str, Any]) -> int:
    """List prices, or update them."""
    if given.get("json_schema"):
        return write_schema(rows_schema(FIELDS))
    form = chosen_form(given)
    if given.get("action") == "update":
        return _update(given, form)
    for name, flag in (("source", "--from"), ("date", "--date")):
        if given.get(name) is not None:
            raise BadInput(f"{flag} is of an update; write `peftplan prices update --from FILE|URL`")
    if given.get("action") is not None:
        given = {"gpu": given["action"], **given}
    offers = _chosen(given)
    rows = [_row(offer) for offer in offers]
    stale, notes = _age(offers), _notes(offers)

    def blocks() -> Iterator[Any]:
        from peftplan.render.prices import price_blocks

        return price_blocks(rows, notes, stale)

    told = [stale, *notes] if stale else notes
    emit(form, lambda: _dumped({"rows": rows, "notes": told}), blocks, lambda: rows_as_csv(rows))
    return EXIT_OK


def _dumped(answer: dict[str, Any]) -> str:
    return json.dumps(answer, ensure_ascii=False)


def _chosen(given: dict[str, Any]) -> list[Offer]:
    """The offers that the filters leave, the cheapest GPU-hour first."""
    from peftplan.catalog.names import normalise
    from peftplan.catalog.prices import all_offers, check_region, find_provider, in_region

    provider = find_provider(given["provider"]) if given.get("provider") is not None else None
    region = given.get("region")
    if region is not None:
        check_region(region, provider)
    gpu, spot = _gpu(given.get("gpu")), bool(given.get("spot"))

    def wanted(offer: Offer) -> bool:
        return (
            (gpu is None or gpu == (offer.gpu or normalise(offer.listed)))
            and (provider is None or offer.provider == provider)
            and (region is None or in_region(offer, region))
            and (not spot or offer.spot_usd_per_h is not None)
        )

    def order(offer: Offer) -> tuple[bool, float]:
        price = offer.per_gpu(spot)
        return price is None, float(price or 0)

    found = sorted(filter(wanted, all_offers()), key=order)
    if not found:
        named = [f"--{name} {shown(given[name])}" for name in ("gpu", "provider", "region") if given.get(name)]
        kind = "spot price" if spot else "price"
        raise NotFound(
            f"no {kind} is known for {', '.join(named)}; leave a filter out, or add prices: "
            "`peftplan prices update --from FILE`"
        )
    return found


def _gpu(name: str | None) -> str | None:
    """A GPU's key, or the plain spelling of one that only price lists have."""
    if name is None:
        return None
    from peftplan.catalog import find_gpu, nearest_gpus
    from peftplan.catalog.names import normalise
    from peftplan.catalog.prices import all_offers

    record = find_gpu(name)
    if record is not None:
        return record.key
    plain = normalise(name)
    if any(plain == normalise(offer.listed) for offer in all_offers() if not offer.gpu):
        return plain
    near = nearest_gpus(name)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise NotFound(f"{shown(name)} is no GPU of the catalogue{hint} (all: `peftplan gpus`)")


def _row(offer: Offer) -> Row:
    from peftplan.catalog.prices import age_days

    figures: dict[str, Any] = {
        "usd_per_gpu_hour": _number(offer.per_gpu()),
        "spot_usd_per_gpu_hour": _number(offer.per_gpu(spot=True)),
        "usd_per_h": _number(offer.usd_per_h),
        "spot_usd_per_h": _number(offer.spot_usd_per_h),
        "age_days": age_days(offer.date),
    }
    return {name: figures[name] if name in figures else getattr(offer, name) for name in FIELDS}


def _number(price: Any) -> float | None:
    return None if price is None else round(float(price), 6)


def _age(offers: Sequence[Offer]) -> str:
    """A warning where prices are older than a month."""
    from peftplan.catalog.prices import STALE_DAYS, age_days

    old = [offer.date for offer in offers if age_days(offer.date) > STALE_DAYS]
    if not old:
        return ""
    return (
        f"{len(old)} of {len(offers)} prices are older than {STALE_DAYS} days, the oldest {age_days(min(old))}; "
        "`peftplan prices update --from FILE|URL` adds newer ones"
    )


def _notes(offers: Sequence[Offer]) -> list[str]:
    from peftplan.catalog.prices import age_days, prices_file, snapshot_offers, user_offers

    snapshot = max(offer.date for offer in snapshot_offers())
    notes = [f"the snapshot that came with peftplan ends {snapshot}, {age_days(snapshot)} days ago"]
    own = user_offers()
    if own:
        newest = max(offer.date for offer in own)
        notes.append(f"{len(own):,} prices of your own in {prices_file()}, the newest of {newest}")
    days = sorted({offer.date for offer in offers})
    between = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    notes.append(f"these were read on {between}; marketplaces change by the minute")
    return notes


def _update(given: dict[str, Any], form: str) -> int:
    """Add a list's prices to the user's file: whole, or not at all."""
    from peftplan.catalog.prices_fetch import fetch
    from peftplan.catalog.prices_import import import_prices, provider_name

    for name in ("gpu", "region", "spot"):
        if given.get(name):
            raise BadInput(f"--{name} is a filter of the list; an update takes --from, --provider and --date")
    source = given.get("source")
    if not source:
        raise BadInput("prices update needs --from: a CSV of SkyPilot or gpuhunt, or its http(s) address")
    with progress_bar("reading prices") as progress:
        fetched = fetch(source, progress)
    day = _day(given.get("date")) or fetched.date
    try:
        provider = provider_name(given["provider"]) if given.get("provider") else fetched.provider
    except ValueError as error:
        raise BadInput(f"--provider: {error}; give a short name such as aws") from None
    if provider is None:
        raise BadInput("whose prices these are cannot be told from the name; add --provider NAME")
    imported = import_prices(fetched.lines, provider, day, fetched.source)
    answer = _stored(imported, day, fetched.source)

    def blocks() -> Iterator[Any]:
        from peftplan.render.prices import update_blocks

        return update_blocks(answer)

    counts = {name: value for name, value in answer.items() if name != "skipped"}
    emit(form, lambda: _dumped(answer), blocks, lambda: rows_as_csv([counts]))
    return EXIT_OK


def _stored(imported: Imported, day: str, source: str) -> dict[str, Any]:
    """Append the offers to the user's file; what was taken and what was left."""
    from peftplan.catalog.prices import MAX_FILE_BYTES, as_csv, prices_file, user_offers
    from peftplan.measure.files import write_whole

    offers = imported.all()
    num_skipped = sum(map(len, imported.skipped.values()))
    if not offers:
        first = next(iter(imported.skipped.items()), None)
        why = f"; line {first[1][0]}: {first[0]}" if first else ""
        raise BadInput(
            f"{source} has no price that can be used, of {imported.num_rows:,} rows{why}; nothing was taken"
        )
    before = _usable(user_offers())
    known = set(before)
    fresh = [offer for offer in offers if offer not in known]
    same_day = {(offer.key(), offer.date) for offer in fresh}
    kept = [offer for offer in before if (offer.key(), offer.date) not in same_day]
    content = as_csv([*kept, *fresh])
    path = prices_file()
    if len(content) > MAX_FILE_BYTES:
        raise BadInput(f"{path} would grow beyond {MAX_FILE_BYTES:,} bytes; remove it and add newer lists only")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{path.parent} cannot be made a folder ({error.strerror}); make one") from None
    if fresh:
        write_whole(path, content, "prices update")
    return {
        "kind": imported.kind,
        "rows": imported.num_rows,
        "added": len(fresh),
        "unchanged": len(offers) - len(fresh),
        "without_gpu": imported.num_without_gpu,
        "num_skipped": num_skipped,
        "providers": sorted({offer.provider for offer in offers}),
        "date": day,
        "source": source,
        "file": str(path),
        "skipped": [
            {"reason": reason, "rows": len(lines), "lines": lines[:_LINES_KEPT]}
            for reason, lines in sorted(imported.skipped.items(), key=lambda pair: -len(pair[1]))
        ],
    }


def _usable(before: tuple[Offer, ...]) -> tuple[Offer, ...]:
    """What the user's file holds; one that holds something else is not written over."""
    from peftplan.catalog.prices import prices_file

    path = prices_file()
    if not before and path.exists():
        raise BadInput(f"{path} holds no prices that can be read; move it away, then update again")
    return before


def _day(text: str | None) -> str | None:
    """A day as YYYY-MM-DD that is not to come."""
    if text is None:
        return None
    try:
        day = date.fromisoformat(text.strip())
        if day.isoformat() != text.strip():
            raise ValueError
    except ValueError:
        raise BadInput(f"--date {shown(text)} is not allowed; give a day as 2026-09-30") from None
    if day > datetime.now(tz=timezone.utc).date():
        raise BadInput(f"--date {text.strip()} is to come; give the day the prices were read")
    return day.isoformat()


COMMAND = Command(
    run,
    (
        Argument(
            "action", "`update`, or the GPU to show", required=False, complete=lambda: ["update", *gpu_names()]
        ),
    ),
    (
        Option("gpu", ("--gpu",), lambda: "show this GPU only", complete=gpu_names),
        Option("provider", ("--provider",), lambda: "show this provider only; in an update, whose prices"),
        Option("region", ("--region",), lambda: "show this region only, such as us-east-1"),
        switch("spot", "show what has a spot price, by that price"),
        Option(
            "source",
            ("--from",),
            lambda: "update: a price list as CSV, of SkyPilot or gpuhunt, or its http(s) address",
            metavar="FILE|URL",
        ),
        Option("date", ("--date",), lambda: "update: the day the prices were read; default the file's, or today"),
        *output_options(),
    ),
    f"The JSON holds rows and notes; each row has {', '.join(FIELDS)}. An update answers with kind, rows, added, "
    "unchanged, without_gpu, num_skipped, providers, date, source, file and skipped (reason, rows, lines).",
)
