"""Every page answers, says what the command line says, and its link reopens it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

pytest.importorskip("streamlit")

from explorer.pages import PAGES
from explorer.views import plan as plan_page
from explorer.words import options
from peftplan import Request, compare, estimate, fit, recommend
from peftplan.cli import main
from peftplan.render.words import verdict

SMALL = {"model": "pythia-70m", "method": "lora", "gpu": "rtx4090"}
WORDS = {"fit": {"axes": "rank"}, "evidence": {"files": "oom_outcomes.csv"}}
METHODS = ("full", "lora", "qlora")


def link_of(page):
    """The words of a page's link."""
    return {name: word if isinstance(word, str) else word[0] for name, word in page.query_params.items()}


def texts(page):
    """All texts of a page, tables with their markup."""
    shown = [*page.markdown, *page.caption, *page.html, *page.metric]
    return "\n".join(str(one.value) for one in shown)


def unescaped(text):
    return text.replace("\\", "")


def command_of(page):
    return shlex.split(next(one.value for one in page.code if one.value.startswith("peftplan ")))


@pytest.mark.parametrize("path", PAGES)
def test_every_page_opens_and_says_what_it_is(opened, path):
    """A page has its title, no traceback and no refusal, and the command that gives its answer."""
    page = opened(path, **SMALL, **WORDS.get(path, {}))
    assert page.title[0].value == PAGES[path][0]
    assert not page.error
    assert command_of(page)[0] == "peftplan"


def test_the_headline_is_the_command_lines_verdict(opened):
    """The page's first line says fits or not in the words of `peftplan estimate`."""
    page = opened(**SMALL)
    text, _ = verdict(estimate(Request(**SMALL)))
    assert text in unescaped(page.success[0].value)


def test_no_gpu_means_no_verdict_and_no_refusal(opened):
    """Without a GPU the page says what is missing, and every card still has a bar."""
    page = opened(model="pythia-70m")
    assert not page.error
    assert not page.success
    assert "No GPU is chosen" in page.info[0].value


def test_the_same_request_gives_the_same_bytes_everywhere(capsys):
    """What the page hands out as JSON, CSV and Markdown is what the command prints, and what the API answers."""
    request = Request(**SMALL)
    files = plan_page.files(request, estimate(request))
    for kind, option in (("json", "--json"), ("csv", "--csv"), ("md", "--markdown")):
        assert main(["estimate", SMALL["model"], "--method", "lora", "--gpu", "rtx4090", option]) == 0
        assert files[kind]() == capsys.readouterr().out
    assert json.loads(files["json"]()) == estimate(request).model_dump(mode="json")


@pytest.mark.parametrize(
    ("path", "words", "answer"),
    [
        ("plan", {"seq_len": "512", "tokens": "2M", "checkpointing": "off"}, estimate),
        (
            "compare",
            {},
            lambda one: compare(one.model_copy(update={"method": m}) for m in METHODS),
        ),
        ("fit", {"axes": "micro_batch"}, lambda one: fit(one, ["micro_batch"])),
        (
            "fit",
            {"view": "recommend", "tokens": "2M"},
            lambda one: recommend(one.model_copy(update={"gpu": None})),
        ),
    ],
)
def test_the_command_on_the_page_gives_the_pages_answer(opened, capsys, path, words, answer):
    """The command that is shown, run with --json, prints what the planner answered to the page's request."""
    page = opened(path, **SMALL, **words)
    assert not page.error
    main([*command_of(page)[1:], "--json"])
    asked = {name: word for name, word in words.items() if name not in ("view", "axes")}
    if "seq_len" in asked:
        asked |= {"seq_len": 512, "checkpointing": False}
    assert capsys.readouterr().out == answer(Request(**SMALL, **asked)).model_dump_json() + "\n"


def test_the_snippet_on_the_page_runs_and_gives_the_pages_figure(opened, capsys):
    """The Python snippet prints the bytes that the API answers."""
    page = opened(**SMALL, targets="query_key_value,dense", epochs="1.5", examples="2000")
    snippet = next(one.value for one in page.code if one.value.startswith("from peftplan"))
    exec(snippet, {})  # noqa: S102  # what the page tells people to run
    expected = estimate(Request(**SMALL, targets="query_key_value,dense")).memory.device_bytes
    assert capsys.readouterr().out.startswith(f"{expected} bytes")


def test_a_changed_control_changes_the_answer_and_the_link(opened):
    """A new sequence length is answered and stands in the link; the link alone gives the same page."""
    page = opened(**SMALL)
    before = page.success[0].value
    page.number_input(key="0.seq_len").set_value(1024).run()
    assert link_of(page)["seq_len"] == "1024"
    assert page.success[0].value != before
    again = opened(**link_of(page))
    assert again.success[0].value == page.success[0].value
    assert texts(again) == texts(page)
    assert again.number_input(key="0.seq_len").value == 1024


def test_a_default_leaves_the_link(opened):
    """A control that is set back to its default is not spelled out in the link."""
    page = opened(**SMALL, micro_batch="4")
    page.number_input(key="0.micro_batch").set_value(1).run()
    assert "micro_batch" not in link_of(page)


def test_choosing_a_model_and_a_method_in_the_form(opened):
    """What is picked in the form is what is answered, and a method without adapters hides their options."""
    page = opened(**SMALL)
    assert "16 (default)" in page.number_input(key="0.rank").placeholder
    page.selectbox(key="0.model").set_value("openai-community/gpt2").run()
    page.selectbox(key="0.method").set_value("full").run()
    assert link_of(page)["model"] == "openai-community/gpt2"
    assert "gpt2" in unescaped(page.caption[0].value)
    assert not [one for one in page.number_input if one.key == "0.rank"]


def test_every_field_that_is_offered_has_a_control_with_its_own_help(opened):
    """Labels and help texts are those of the request's fields."""
    page = opened(**SMALL)
    controls = [*page.number_input, *page.selectbox, *page.text_input, *page.toggle]
    helps = {control.key.removeprefix("0."): control.help for control in controls if control.key.startswith("0.")}
    single = {name: option for name, option in options().items() if not option.many}
    assert set(single) <= set(helps)
    for name, option in single.items():
        assert helps[name] == option.help()


def test_a_methods_own_options_are_asked_for_and_travel(opened):
    """What one method alone has stands in the form, in the link and in the command."""
    page = opened(**{**SMALL, "method": "adalora"})
    page.text_input(key="0.method_options.init_r").set_value("24").run()
    assert link_of(page)["method_options"] == "init_r=24"
    words = command_of(page)
    assert words[words.index("--method-option") + 1] == "init_r=24"
    assert not page.error


def test_the_timeline_ends_in_the_reports_own_peak(opened):
    """The peak of the chart and the peak of the tree are the report's bytes."""
    page = opened("timeline", **SMALL)
    spec = json.loads(page.get("vega_lite_chart")[0].proto.spec)
    drawn = json.dumps(spec)
    report = estimate(Request(**SMALL))
    from peftplan.units import format_bytes

    assert f"peak {format_bytes(report.memory.peak_allocated_bytes)}" in drawn
    assert len(page.expander) >= len(report.memory.breakdown.children)


def test_columns_of_a_comparison_are_set_one_by_one_and_in_the_link(opened):
    """A plan may be changed, added and taken away; the classic three are one click away."""
    page = opened("compare", **SMALL)
    page.selectbox(key="2.method").set_value("qlora").run()
    assert link_of(page)["2.method"] == "qlora"
    page.number_input(key="2.rank").set_value(64).run()
    next(button for button in page.button if button.label == "One more").click().run()
    assert link_of(page)["columns"] == "4"
    assert command_of(page) == ["peftplan", "compare", *(f"plan-{n}.json" for n in (1, 2, 3, 4))]
    next(button for button in page.button if button.label.startswith("full")).click().run()
    assert link_of(page)["columns"] == "3"
    assert "2.rank" not in link_of(page)
    assert command_of(page)[-2:] == ["--methods", "full,lora,qlora"]


def test_a_comparison_leaves_out_options_that_a_method_does_not_have(opened):
    """Options of the plan's own method do not stop the others from being compared with it."""
    page = opened("compare", **{**SMALL, "method": "adalora", "method_options": "init_r=24"})
    assert not page.error
    page.selectbox(key="2.method").set_value("adalora").run()
    assert not page.error


def test_a_comparison_says_its_differences_in_all_three_currencies(opened):
    """Every further plan is held against the first in GiB, seconds and dollars."""
    page = opened("compare", **SMALL, tokens="2M")
    table = next(one.value for one in page.html if "Against 1: full" in one.value)
    assert all(unit in table for unit in ("GiB", "s<", "$"))


def test_pages_load_no_torch():
    """A server that has drawn every page has not loaded torch."""
    program = (
        "import sys\n"
        "from streamlit.testing.v1 import AppTest\n"
        "make = AppTest.from_string\n"
        "for path, more in (('plan', {}), ('timeline', {}), ('compare', {}), ('fit', {'axes': 'rank'}), "
        "('evidence', {'files': 'oom_outcomes.csv'})):\n"
        "    page = make(f'from explorer.pages import serve\\nserve({path!r})', default_timeout=120)\n"
        "    for name, word in {'model': 'pythia-70m', 'gpu': 'rtx4090', **more}.items():\n"
        "        page.query_params[name] = word\n"
        "    page.run()\n"
        "    assert not page.exception and not page.error, path\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    path = [entry for entry in sys.path if entry]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{program}"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
