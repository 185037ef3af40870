"""The catalogue of prices: a dated snapshot, a user's own file beside it, filters, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from peftplan.catalog import find_gpu
from peftplan.catalog import prices as catalogue
from peftplan.catalog.prices import Offer, age_days, as_csv, check_region, find_provider, newest, offers_for
from peftplan.catalog.prices_gpus import match_gpu
from peftplan.errors import BadInput

SNAPSHOT = catalogue.snapshot_offers()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for the user's prices that holds none."""
    path = tmp_path / "data" / "prices.csv"
    path.parent.mkdir()
    monkeypatch.setattr(catalogue, "prices_file", lambda: path)
    return path


def offer(**changes: object) -> Offer:
    fields = {
        "provider": "aws",
        "gpu": "h100",
        "listed": "H100",
        "gpu_count": 8,
        "instance": "p5.48xlarge",
        "region": "us-east-1",
        "usd_per_h": Decimal(40),
        "spot_usd_per_h": None,
        "date": "2026-11-01",
        "source": "a list",
        "confidence": "high",
        "note": "",
    }
    return Offer(**{**fields, **changes})  # type: ignore[arg-type]


# ---- the snapshot


@pytest.mark.parametrize("row", SNAPSHOT, ids=lambda row: f"{row.provider}-{row.instance}-{row.region}")
def test_every_price_of_the_snapshot_is_dated_and_sourced(row: Offer) -> None:
    """A row has a day, a source, how far it is to be trusted, and a price of whole GPUs in dollars."""
    assert re.fullmatch(r"2026-\d{2}-\d{2}", row.date)
    assert row.source
    assert row.confidence in ("high", "medium", "low")
    assert row.usd_per_h is not None
    assert Decimal("0.05") <= row.usd_per_h / row.gpu_count <= 20


@pytest.mark.parametrize("row", SNAPSHOT, ids=lambda row: f"{row.provider}-{row.instance}-{row.region}")
def test_every_price_is_of_the_gpu_that_its_name_says(row: Offer) -> None:
    """The key in the file is the one that the source's names lead to; a row without one says why in its note."""
    matched = match_gpu(row.listed, row.instance, row.gpu_count)
    assert (matched.key or "") == row.gpu
    assert row.gpu or matched.reason in row.note


def test_the_snapshot_names_each_machine_once() -> None:
    """What a list has both under its region and as the cheapest one stands once."""
    assert len({row.key() for row in SNAPSHOT}) == len(SNAPSHOT)


def test_no_spot_price_repeats_the_one_on_demand() -> None:
    """RunPod and some machines of Azure list the same price twice, vast.ai a zero: these have no spot price."""
    for row in SNAPSHOT:
        if row.spot_usd_per_h is not None:
            assert row.usd_per_h is not None
            assert 0 < row.spot_usd_per_h < row.usd_per_h, row
    assert all(row.spot_usd_per_h is None for row in SNAPSHOT if row.provider in ("vast.ai", "runpod"))


@pytest.mark.parametrize(
    ("gpu", "low", "high"),
    [
        ("t4", "0.53", "1.20"),
        ("l4", "0.71", "1.67"),
        ("a10g", "1.01", "2.04"),
        ("l40s", "0.60", "3.77"),
        ("a100-80", "1.39", "4.10"),
        ("h100", "1.80", "12.29"),
        ("h200", "2.35", "10.84"),
        ("b200", "6.69", "14.24"),
    ],
)
def test_prices_per_gpu_span_what_was_read(own: Path, gpu: str, low: str, high: str) -> None:
    """The lowest and highest USD per GPU-hour of a card are those of the published lists, to the cent."""
    found = [price for row in offers_for(gpu) if (price := row.per_gpu()) is not None]
    assert f"{min(found):.2f}" == low
    assert f"{max(found):.2f}" == high


def test_stale_copies_did_not_come_in() -> None:
    """AWS lists p5.48xlarge at $55.04 and p4d.24xlarge at $21.96, not what older tables still say."""
    found = {row.instance: row.usd_per_h for row in SNAPSHOT if row.provider == "aws"}
    assert found["p5.48xlarge"] == Decimal("55.04")
    assert found["p4d.24xlarge"] == Decimal("21.9576")


# ---- the user's file


def test_the_newest_price_of_a_machine_counts(own: Path) -> None:
    """A newer row of one's own replaces the snapshot's, an older one does not, a new machine is added."""
    own.write_bytes(
        as_csv(
            [
                offer(date="2026-10-30", usd_per_h=Decimal(48)),
                offer(instance="p4d.24xlarge", gpu="a100-40", date="2020-01-01", usd_per_h=Decimal(1)),
                offer(provider="myown", instance="box", region=""),
            ]
        )
    )
    found = {row.instance: row for row in catalogue.all_offers() if row.provider in ("aws", "myown")}
    assert found["p5.48xlarge"].usd_per_h == Decimal(48)
    assert found["p4d.24xlarge"].usd_per_h == Decimal("21.9576")
    assert found["box"].per_gpu() == Decimal(5)
    assert [row.usd_per_h for row in offers_for("h100", "aws")] == [Decimal(48)]


def test_a_changed_file_is_read_again(own: Path) -> None:
    """Prices that were added while the program runs are seen."""
    before = len(catalogue.all_offers())
    own.write_bytes(as_csv([offer(provider="myown")]))
    assert len(catalogue.all_offers()) == before + 1


def test_a_file_round_trips(own: Path) -> None:
    """What is written is what is read: every field, and prices to the last digit."""
    rows = (
        offer(note='a "quoted", note', usd_per_h=Decimal("1.10")),
        offer(usd_per_h=None, spot_usd_per_h=Decimal(9)),
    )
    own.write_bytes(as_csv(rows))
    assert catalogue.user_offers() == rows


DAMAGED: dict[str, Callable[[str], str]] = {
    "no columns": lambda text: text.partition("\n")[2],
    "another currency": lambda text: text.replace(",40,", ",€40,"),
    "negative": lambda text: text.replace(",40,", ",-40,"),
    "not a number": lambda text: text.replace(",40,", ",NaN,"),
    "absurd": lambda text: text.replace(",40,", ",4000000,"),
    "no price": lambda text: text.replace(",40,", ",,"),
    "no GPU of the catalogue": lambda text: text.replace(",h100,", ",h900,"),
    "no date": lambda text: text.replace("2026-11-01", "2026"),
    "half a row": lambda text: text[:-30],
    "no count": lambda text: text.replace(",8,", ",0.5,"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_passed_over_with_a_warning(
    own: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is not as it has to be counts for nothing, and a line on stderr names it and the line."""
    own.write_text(DAMAGED[kind](as_csv([offer()]).decode()))
    assert catalogue.all_offers() == newest(SNAPSHOT)
    told = capsys.readouterr().err
    assert told.startswith(f"warning: {own} holds no prices")
    assert told.count("\n") == 1


# ---- names


@pytest.mark.parametrize(
    ("name", "provider"),
    [("AWS", "aws"), ("vast", "vast.ai"), ("Vast.ai", "vast.ai"), ("lambdalabs", "lambda"), ("google", "gcp")],
)
def test_a_provider_is_found_by_its_common_names(own: Path, name: str, provider: str) -> None:
    """Case and the names that other lists give a provider do not matter."""
    assert find_provider(name) == provider


def test_an_unknown_provider_is_refused_with_those_there_are(own: Path) -> None:
    """The line names what was given, what there is, and the nearest."""
    with pytest.raises(BadInput, match=r"'azur' is unknown; there are aws, azure, .*did you mean azure\?"):
        find_provider("azur")


def test_a_region_without_a_price_is_refused(own: Path) -> None:
    """A region counts for the provider that is asked; one that is everywhere has every region."""
    check_region("us-east-1", "aws")
    check_region("anywhere", "lambda")
    check_region("DK", None)
    with pytest.raises(BadInput, match=r"--region 'mars-1' has no price; aws has us-east-1"):
        check_region("mars-1", "aws")
    with pytest.raises(BadInput, match="has no price; there are"):
        check_region("mars-1", None)


def test_age_is_counted_in_days() -> None:
    """From the day a price was read to today."""
    assert age_days("2026-09-27", date(2026, 11, 22)) == 56


@pytest.mark.parametrize(
    ("listed", "machine", "count", "memory", "key"),
    [
        ("A100", "p4d.24xlarge", 8, None, "a100-40"),
        ("A100-80GB", "1x_A100-80GB_SECURE", 1, 80, "a100-80"),
        ("A100", "1x-A100_PCIE-32-65536", 1, 81920, "a100-80-pcie"),
        ("A100", "4x-A100_SXM4-32-65536", 4, 163840, "a100-40"),
        ("A100", "a100", 1, 80, "a100-80"),
        ("V100", "gpu_8x_v100", 8, 16384, "v100-16"),
        ("V100", "x", 1, 32, "v100-32"),
        ("H100", "gpu_1x_h100_pcie", 1, None, "h100-pcie"),
        ("H100", "2x-H100_NVL-32-65536", 2, 191660, "h100-nvl"),
        ("H100", "unnamed", 1, 94, "h100-nvl"),
        ("H100", "Standard_NC40ads_H100_v5", 1, None, "h100-nvl"),
        ("A100-80GB", "Standard_NC24ads_A100_v4", 1, None, "a100-80-pcie"),
        ("H100-MEGA", "a3-megagpu-8g+H100-MEGA", 8, None, "h100"),
        ("RTX4070", "4x-RTX_4070S_Ti-32-65536", 4, 65504, "rtx4070tis"),
        ("RTX-6000-Ada", "1RTX6000ADA.10V", 1, 49152, "rtx6000ada"),
        ("RTX6000", "gpu_1x_rtx6000", 1, None, None),
        ("RTX3060", "1x-RTX_3060_Ti-32-65536", 1, None, None),
        ("RTX4090", "1x-RTX_4090-32-65536", 1, 49140, None),
        ("A10", "Standard_NV6ads_A10_v5", 1, 4, None),
        ("TPU-v5", "ct5", 1, None, None),
    ],
)
def test_listed_names_lead_to_the_card_they_mean(
    listed: str, machine: str, count: int, memory: float | None, key: str | None
) -> None:
    """Memory, the machine's name and the list's own conventions decide; a card in doubt is none, with a reason."""
    found = match_gpu(listed, machine, count, memory)
    assert found.key == key
    assert (found.key is None) == bool(found.reason)
    if key is not None:
        assert find_gpu(key) is not None
