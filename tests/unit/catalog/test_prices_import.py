"""Price lists of SkyPilot and gpuhunt: what they give, what is skipped by line, what is refused as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from peftplan.catalog import prices_fetch
from peftplan.catalog.prices import Offer
from peftplan.catalog.prices_fetch import fetch
from peftplan.catalog.prices_import import Imported, import_prices
from peftplan.errors import BadInput, MachineLacks, NotFound

SKYPILOT = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region\n"
GPUHUNT = "instance_name,location,price,cpu,memory,gpu_vendor,gpu_count,gpu_name,gpu_memory,spot,disk_size\n"
INFO = "\"{'Gpus': [{'Name': 'T4', 'MemoryInfo': {'SizeInMiB': 16384}}], 'TotalGpuMemoryInMiB': 16384}\""


def read(text: str, provider: str = "aws") -> Imported:
    return import_prices(text.splitlines(keepends=True), provider, "2026-11-01", "list.csv")


def only(found: Imported) -> Offer:
    (offer,) = found.all()
    return offer


def sky(row: str) -> Imported:
    return read(SKYPILOT + row + "\n")


# ---- SkyPilot


def test_a_row_of_skypilot_becomes_an_offer() -> None:
    """Provider and day come from the caller, the machine and its prices from the row, money as a decimal."""
    offer = only(sky(f"g4dn.xlarge,T4,1.0,4,16,{INFO},0.526,0.2042,us-east-1"))
    assert (offer.provider, offer.gpu, offer.gpu_count, offer.instance) == ("aws", "t4", 1, "g4dn.xlarge")
    assert (offer.usd_per_h, offer.spot_usd_per_h) == (Decimal("0.526"), Decimal("0.2042"))
    assert (offer.region, offer.date, offer.source, offer.confidence) == (
        "us-east-1",
        "2026-11-01",
        "list.csv",
        "high",
    )


def test_columns_may_stand_in_any_order() -> None:
    """What is read is found by its column's name."""
    text = "Region,Price,SpotPrice,AcceleratorCount,AcceleratorName,InstanceType,AvailabilityZone\n"
    assert only(read(text + "eu,1.5,,2,L4,g6,eu-a\n")).per_gpu() == Decimal("0.75")


@pytest.mark.parametrize("spot", ["", "0.00", "0.526", "0.9"])
def test_a_spot_price_that_is_none_is_none(spot: str) -> None:
    """Zero, the price on demand again, or more than it, are lists' ways of having no spot price."""
    assert only(sky(f"g4dn.xlarge,T4,1,4,16,,0.526,{spot},us-east-1")).spot_usd_per_h is None


def test_zones_of_a_region_count_once_at_their_lowest() -> None:
    """One machine in several zones is one offer, the cheapest on demand and spot."""
    rows = "a,T4,1,4,16,,0.60,0.20,us\na,T4,1,4,16,,0.50,0.30,us\n"
    offer = only(read(SKYPILOT + rows))
    assert (offer.usd_per_h, offer.spot_usd_per_h) == (Decimal("0.50"), Decimal("0.20"))


def test_google_prices_of_gpu_and_machine_are_summed() -> None:
    """A GPU without a machine costs what it and its host cost; without the host's price it is skipped."""
    found = read(
        SKYPILOT
        + "a2-highgpu-1g,,,12,85,,0.73948,0.36975,us-central1\n"
        + ",A100,1.0,,,A100,2.93391,1.43406,us-central1\n"
        + ",A100,2.0,,,A100,5.86782,2.86812,us-central1\n",
        "gcp",
    )
    offer = only(found)
    assert offer.instance == "a2-highgpu-1g+A100"
    assert (offer.usd_per_h, offer.spot_usd_per_h) == (Decimal("3.67339"), Decimal("1.80381"))
    assert found.skipped == {"the GPU is priced without a machine, and the list has no price of one for it": [4]}


SKIPPED = {
    "a,T4,1,4,16,,-0.5,,us": "negative",
    "a,T4,1,4,16,,nan,,us": "no number",
    "a,T4,1,4,16,,inf,,us": "no number",
    "a,T4,1,4,16,,1e999,,us": "not between",
    'a,T4,1,4,16,,"1,5",,us': "no number",
    "a,T4,1,4,16,,0,,us": "zero",
    "a,T4,1,4,16,,0.0001,,us": "not between",
    "a,T4,1,4,16,,9999,,us": "not between",
    "a,T4,1,4,16,,,,us": "no price",
    "a,T4,1,4,16,,0.5,-1,us": "negative",
    "a,T4,0.25,4,16,,0.5,,us": "a part of a GPU",
    "a,T4,many,4,16,,0.5,,us": "no count",
    "a,K80,1,4,16,,0.5,,us": "K80 is not in the catalogue",
    "a,T4,1,4": "broken",
    "a,T4,1,4,16,,0.5,,us,more": "broken",
    "a\0,T4,1,4,16,,0.5,,us": "broken",
    f"a,T4,1,4,16,{'x' * 5000},0.5,,us": "broken",
}


@pytest.mark.parametrize("row", SKIPPED, ids=lambda row: row[:30])
def test_a_row_that_is_no_price_is_skipped_with_its_line(row: str) -> None:
    """The rows around it are taken; the line and the reason are told."""
    good = "b,L4,1,4,16,,0.7,,us\n"
    found = read(SKYPILOT + good + row + "\n" + good.replace("b,", "c,"))
    assert sorted(offer.instance for offer in found.all()) == ["b", "c"]
    ((reason, lines),) = found.skipped.items()
    assert SKIPPED[row] in reason
    assert lines == [3]


def test_machines_without_a_gpu_are_counted_only() -> None:
    """A CPU machine is no price of a GPU, and no mistake either."""
    found = sky("m5.large,,,2,8,,0.1,,us")
    assert (found.num_without_gpu, found.skipped, found.all()) == (1, {}, ())


def test_nothing_in_a_cell_is_evaluated() -> None:
    """A GpuInfo that is code is looked through for one number, and a name for signs that cannot be printed."""
    found = sky("a\x1b[31m,T4,1,4,16,__import__('os').abort(),0.5,,us")
    assert only(found).instance == "a [31m"


# ---- gpuhunt


def test_rows_of_gpuhunt_are_joined_by_machine() -> None:
    """The spot price stands in a row of its own; memory is that of one GPU."""
    rows = "p5,us-east-1,55.04,192,2048,nvidia,8,H100,80,False,\np5,us-east-1,20,192,2048,nvidia,8,H100,80,True,\n"
    offer = only(read(GPUHUNT + rows))
    assert (offer.gpu, offer.usd_per_h, offer.spot_usd_per_h) == ("h100", Decimal("55.04"), Decimal(20))


def test_a_slice_of_a_gpu_is_skipped() -> None:
    """Azure rents a sixth of an A10 as one GPU of 4 GB."""
    found = read(GPUHUNT + "NV6,eastus,0.45,6,55,nvidia,1,A10,4,False,\n")
    assert found.all() == ()
    assert list(found.skipped.values()) == [[2]]


# ---- the whole list

REFUSED = {
    "": "is empty",
    "a,b\n1,2\n": "no price list that is known",
    SKYPILOT.replace(",Price", ",PriceEUR") + "a,T4,1,4,16,,1,,us\n": "USD",
    SKYPILOT + "a,T4,1,4,16,,€1,,us\n": "line 2 has Price '€1': prices have to be in USD",
    SKYPILOT + "a,T4,1,4,16,,1 EUR,,us\n": "USD",
    SKYPILOT + "a,T4,1,4,16,,A$1,,us\n": "USD",
    SKYPILOT.replace("Region", "Region,Currency") + "a,T4,1,4,16,,1,,us,GBP\n": "Currency 'GBP'",
    SKYPILOT.replace("vCPUs", "Price"): "a column twice",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: REFUSED[text])
def test_a_list_that_cannot_be_used_is_refused_as_a_whole(text: str) -> None:
    """Another currency is no mistake of one row: nothing of the list is taken."""
    with pytest.raises(BadInput, match=re.escape(REFUSED[text])):
        read(text)


@pytest.mark.parametrize("price", ["$1.50", "US$1.50", "1.50 USD", "USD 1.50", "$ 1.50"])
def test_dollars_may_say_that_they_are(price: str) -> None:
    """A dollar sign, or USD, is no other currency."""
    assert only(sky(f"a,T4,1,4,16,,{price},,us")).usd_per_h == Decimal("1.50")


# ---- where lists come from


def test_a_file_says_whose_it_is_by_its_name(tmp_path: Path) -> None:
    """`lambda/vms.csv` is of lambda, `aws.csv` of aws, and the day is the file's."""
    (tmp_path / "lambda").mkdir()
    for name in ("lambda/vms.csv", "aws.csv"):
        (tmp_path / name).write_text("x")
    assert fetch(str(tmp_path / "lambda" / "vms.csv")).provider == "lambda"
    assert fetch(str(tmp_path / "aws.csv")).provider == "aws"
    assert len(fetch(str(tmp_path / "aws.csv")).date) == 10


@pytest.mark.parametrize("content", [b"PK\x03\x04rest", b"\x1f\x8brest"])
def test_a_packed_list_is_refused(tmp_path: Path, content: bytes) -> None:
    """An archive is named as such, with what to do."""
    path = tmp_path / "aws.csv"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="is packed; unpack it"):
        fetch(str(path))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A folder, and a file that is not there, are told apart."""
    with pytest.raises(BadInput, match="is a folder"):
        fetch(str(tmp_path))
    with pytest.raises(NotFound, match="does not exist"):
        fetch(str(tmp_path / "nope.csv"))


def test_a_file_beyond_the_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a price list has is not read."""
    monkeypatch.setattr(prices_fetch, "MAX_FILE_BYTES", 100)
    path = tmp_path / "aws.csv"
    path.write_text("x" * 101)
    with pytest.raises(BadInput, match="is longer than"):
        fetch(str(path))


@contextmanager
def serving(status: int, body: bytes, location: str = "") -> Iterator[str]:
    """An address on this machine that answers every request alike."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/catalogs/v8/aws/vms.csv"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_list_is_fetched_from_an_address() -> None:
    """The text, and the provider from the address's folder; progress is told."""
    told: list[float] = []
    with serving(200, SKYPILOT.encode()) as address:
        fetched = fetch(address, lambda done, _: told.append(done))
    assert fetched.lines.read() == SKYPILOT
    assert (fetched.provider, fetched.source) == ("aws", address)
    assert told[-1] == 1.0


def test_addresses_that_do_not_answer_are_told() -> None:
    """A status, a refused connection, and a way out of the web each end in one line."""
    with serving(404, b"") as address, pytest.raises(NotFound, match="answers 404"):
        fetch(address)
    with serving(302, b"", "ftp://example.com/aws.csv") as address, pytest.raises(BadInput, match="no web address"):
        fetch(address)
    with pytest.raises(BadInput, match="no web address"):
        fetch("ftp://example.com/aws.csv")
    with pytest.raises(MachineLacks, match="cannot be reached"):
        fetch("http://127.0.0.1:1/aws.csv")
