"""The main journeys in a real browser, against a server started as people start it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

pytest.importorskip("streamlit")
pytest.importorskip("playwright.sync_api")

from peftplan import Request, estimate
from peftplan.render.words import verdict
from peftplan.units import format_bytes

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
WAIT_MS = 120_000
START_S = 60.0

pytestmark = [
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="chromium is not installed"),
    pytest.mark.xdist_group("browser"),  # one browser and one server at a time
]


def playwright():
    """Its client for tests without an event loop."""
    return import_module("playwright.sync_api")


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """A server of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("ui") / "server.log"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "HOME": str(log.parent), "PYTHONPATH": path}
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "peftplan", "ui", "--no-browser", "--port", str(port)],
            stdout=out,
            stderr=out,
            env=environment,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, server, log)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=20)


def _wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()
        try:
            urlopen(f"{url}/_stcore/health", timeout=1).close()  # noqa: S310
        except (URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """One browser for all journeys."""
    with playwright().sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def page(browser) -> Iterator[object]:
    """A page whose uncaught errors fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(WAIT_MS)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert not errors


def headline(page) -> str:
    """The verdict of the page."""
    shown = page.get_by_test_id("stMain").get_by_test_id("stAlert").first
    shown.wait_for()
    return shown.inner_text()


def pick(page, label: str, text: str, option: str) -> None:
    """Choose from a searchable list by keyboard, as people do."""
    box = page.get_by_role("combobox", name=label, exact=False).first
    box.click()
    box.fill(text)
    page.get_by_role("option", name=option).first.click()


def expected(**fields) -> str:
    return verdict(estimate(Request(**fields)))[0]


def test_plan_a_run_change_it_share_it_and_take_it_away(page, address):
    """Open, pick a 70B model and QLoRA, read the verdict, change the length, reopen the link, save the answer."""
    page.goto(f"{address}/?model=gpt2&gpu=a100-80")
    assert "fits" in headline(page)
    pick(page, "model", "llama-70b", "Llama-2-70b-hf")
    pick(page, "method", "qlora", "qlora")
    page.get_by_text(expected(model="llama-70b", method="qlora", gpu="a100-80")).first.wait_for()
    length = page.get_by_role("spinbutton", name="seq len")
    length.fill("4096")
    length.press("Enter")
    said = expected(model="llama-70b", method="qlora", gpu="a100-80", seq_len=4096)
    page.get_by_text(said).first.wait_for()
    page.wait_for_url(re.compile("seq_len=4096"))

    again = page.context.new_page()
    again.goto(page.url)
    again.get_by_text(said).first.wait_for()
    playwright().expect(again.get_by_role("spinbutton", name="seq len")).to_have_value("4096")
    again.close()

    with page.expect_download() as saved:
        page.get_by_role("button", name="JSON", exact=True).click()
    answer = json.loads(Path(saved.value.path()).read_text())
    asked = Request(model=answer["request"]["model"], method="qlora", gpu="a100-80", seq_len=4096)
    assert answer == estimate(asked).model_dump(mode="json")


def test_a_charts_words_and_bars_are_there(page, address):
    """Every card has its bar, whose words say what it shows to whoever cannot see it."""
    page.goto(f"{address}/?model=pythia-70m&gpu=rtx4090")
    headline(page)
    chart = page.get_by_test_id("stVegaLiteChart").first
    chart.locator("canvas, svg").first.wait_for()
    words = chart.evaluate("chart => chart.outerHTML")
    assert "H200" in words


def test_pointing_at_the_timeline_names_the_largest_tensors(page, address):
    """Where the pointer meets the chart, the moment's bytes and its largest tensors are told."""
    page.goto(f"{address}/timeline?model=pythia-70m&gpu=rtx4090")
    chart = page.get_by_test_id("stVegaLiteChart").first
    chart.locator("canvas, svg").first.wait_for()
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    told = page.locator("#vg-tooltip-element")
    for share in (0.4, 0.5, 0.6):  # the first movement may come before the chart listens
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.5 * box["height"])
        page.wait_for_timeout(300)
    told.wait_for()
    text = told.inner_text()
    assert "allocated" in text
    assert re.search(r"largest\s+[\d.]+ [KMG]iB .*\[[\d, ]+\]", text), text


def test_compare_and_go_from_page_to_page_with_one_plan(page, address):
    """The plan stays while its pages are gone through; the classic comparison is there at once."""
    page.goto(f"{address}/?model=pythia-70m&gpu=rtx4090&micro_batch=3")
    headline(page)
    page.get_by_role("link", name="Compare").click()
    page.get_by_text("Against 1: full").wait_for()
    page.wait_for_url(re.compile("compare.*micro_batch=3"))
    page.get_by_role("link", name="Timeline").click()
    page.get_by_text("The peak as a tree").wait_for()
    page.wait_for_url(re.compile("timeline.*micro_batch=3"))
    peak = estimate(Request(model="pythia-70m", micro_batch=3)).memory.peak_allocated_bytes
    page.get_by_text(format_bytes(peak)).first.wait_for()


def test_a_bad_config_is_told_and_the_page_goes_on(page, address, tmp_path):
    """An uploaded file that is no config is refused in one line; a good one is answered, also by its link."""
    from peftplan.catalog import find_model

    bad, good = tmp_path / "bad.json", tmp_path / "good.json"
    bad.write_text('{"model_type": "llama", ')
    config = dict(find_model("pythia-70m").config)
    good.write_text(json.dumps(config))
    page.goto(f"{address}/?model=pythia-70m&gpu=rtx4090")
    headline(page)
    page.get_by_role("radio", name="own config.json").click()
    upload = page.get_by_test_id("stSidebar").locator("input[type=file]")
    upload.set_input_files(str(bad))
    page.get_by_text("bad.json is no valid JSON").wait_for()
    upload.set_input_files(str(good))
    said = expected(model=config, gpu="rtx4090")
    page.get_by_text(said).first.wait_for()
    page.wait_for_url(re.compile("config=[A-Za-z0-9_-]{40,}"))
    again = page.context.new_page()
    again.goto(page.url)
    again.get_by_text(said).first.wait_for()


@pytest.mark.parametrize("path", ["", "timeline", "compare", "fit"])
def test_no_page_is_wider_than_its_window(page, address, path):
    """On a phone and on a small window nothing but tables scrolls sideways."""
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{address}/{path}?model=pythia-70m&gpu=rtx4090")
    page.get_by_text("Take it with you").wait_for()
    for width in (390, 900):
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_timeout(500)  # charts are drawn anew
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert page.get_by_test_id("stMain").evaluate("part => part.scrollWidth - part.clientWidth") <= 1


def test_nothing_is_fetched_from_elsewhere(page, address):
    """A page asks its own server and nobody else."""
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}/compare?model=pythia-70m&gpu=rtx4090")
    page.get_by_text("Take it with you").wait_for()
    assert asked
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)


def test_the_form_is_used_by_keyboard(page, address):
    """A control is reached with Tab and changed with keys alone."""
    page.goto(f"{address}/?model=pythia-70m&gpu=rtx4090")
    before = headline(page)
    page.get_by_role("spinbutton", name="micro batch").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("8")
    page.keyboard.press("Tab")
    said = expected(model="pythia-70m", gpu="rtx4090", micro_batch=8)
    page.get_by_text(said).first.wait_for()
    assert before != said
