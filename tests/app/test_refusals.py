"""Bad input in a page: the command line's own line, and the rest of the page alive."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("streamlit")

from hypothesis import given
from hypothesis import strategies as st

from explorer.words import packed, request_of, unpacked
from peftplan import estimate
from peftplan.catalog import find_model
from peftplan.catalog.lookup import MAX_CONFIG_BYTES
from peftplan.cli import main
from peftplan.errors import BadInput, NotFound
from peftplan.units import MIB

SMALL = {"model": "pythia-70m", "method": "lora"}


def link_of(page):
    """The words of a page's link."""
    return {name: word if isinstance(word, str) else word[0] for name, word in page.query_params.items()}


def refusal(page):
    """The one line of the page that refuses, as text."""
    assert len(page.error) == 1, [one.value for one in page.error]
    text = page.error[0].value.replace("\\", "")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ({"seq_len": "-5"}, ["--seq-len", "-5"]),
        ({"micro_batch": "many"}, ["--micro-batch", "many"]),
        ({"precision": "bf16-master"}, ["--precision", "bf16-master"]),
        ({"precision": "bf61"}, ["--precision", "bf61"]),
        ({"method": "full", "quant": "nf4"}, ["--method", "full", "--quant", "nf4"]),
        ({"method": "loar"}, ["--method", "loar"]),
        ({"gpu": "rtx9999"}, ["--gpu", "rtx9999"]),
        ({"optimizer": "<b>adam</b>"}, ["--optimizer", "<b>adam</b>"]),
        ({"targets": "q_prj"}, ["--targets", "q_prj"]),
        ({"tokens": "1e999"}, ["--tokens", "1e999"]),
        ({"use_reentrant": "on", "checkpointing": "off"}, ["--use-reentrant", "--no-checkpointing"]),
    ],
)
def test_what_the_command_line_refuses_the_page_refuses_in_the_same_words(opened, capsys, words, options):
    """A bad word in a link is told in the command's line, and the form goes on."""
    page = opened(**{**SMALL, **words})
    assert main(["estimate", SMALL["model"], "--method", "lora", *options]) != 0
    assert refusal(page) == capsys.readouterr().err.strip().removeprefix("error: ")
    page.selectbox(key="0.model").set_value("openai-community/gpt2").run()
    assert not page.exception


def test_after_a_refusal_the_next_change_is_answered(opened):
    """A page that refused answers as soon as what was wrong is set right."""
    page = opened(**SMALL, gpu="rtx4090", precision="bf16-master")
    assert page.error
    page.selectbox(key="0.precision").set_value("bf16").run()
    assert not page.error
    assert page.success


@pytest.mark.parametrize("path", ["timeline", "compare", "fit"])
def test_every_page_of_a_plan_refuses_in_one_line(opened, path):
    """Where the plan cannot be answered, the page says why, without a traceback."""
    page = opened(path, **SMALL, gpu="rtx9999")
    assert any("rtx9999" in one.value for one in page.error)


def test_unknown_words_of_a_link_are_named(opened):
    """A word that no field has is refused by its name; so is a field that the explorer does not offer."""
    assert "sequence is no field of a request" in refusal(opened(**SMALL, sequence="4"))
    assert "data is not offered by the explorer" in refusal(opened(**SMALL, data="/etc/passwd"))


@pytest.mark.parametrize("name", ["/etc/passwd", "../config.json", "~/x/y", "a/../b", "", "llama-seventy"])
def test_a_model_is_a_name_and_never_a_path_of_the_server(name):
    """Files of the machine that serves the page are not opened, whatever a link says."""
    with pytest.raises(NotFound):
        request_of({"model": name})


def test_fit_without_a_gpu_says_what_is_missing(opened):
    """The page of a card asks for one."""
    assert "name one with --gpu" in refusal(opened("fit", **SMALL))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"deadline": "soon", "tokens": "1M"}, "--deadline 'soon' is not allowed"),
        ({"budget": "-3", "tokens": "1M"}, "--budget '-3' is not allowed"),
        ({"budget": "40"}, "its length is not known"),
    ],
)
def test_limits_of_a_recommendation_are_read_as_the_command_line_reads_them(opened, words, told):
    """A budget or a deadline that cannot be read, or is of no known run, is refused in one line."""
    assert told in refusal(opened("fit", **SMALL, view="recommend", **words))


def test_ranks_that_cannot_be_read_leave_the_comparison_alone(opened):
    """A bad list of ranks is refused below; the plans above are compared."""
    page = opened("compare", **SMALL, ranks="8,x")
    assert "x" in refusal(page)
    assert any("Against 1: full" in one.value for one in page.html)


# ---- configs


def config_of(name="pythia-70m"):
    return dict(find_model(name).config)


def test_a_pasted_config_is_answered_and_travels_in_the_link(opened):
    """A config gives the API's answer for the same mapping; its link reopens it."""
    page = opened(**SMALL, gpu="rtx4090", config="")
    assert "no config is given yet" in refusal(page)
    page.text_area(key="config.pasted").set_value(json.dumps(config_of())).run()
    assert not page.error
    assert page.success
    again = opened(**link_of(page))
    assert again.success[0].value == page.success[0].value
    request = request_of({"config": link_of(page)["config"], "method": "lora", "gpu": "rtx4090"})
    assert request.model == config_of()
    assert estimate(request).model.num_params == estimate(request_of(SMALL)).model.num_params


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"model_type": "llama",', "no valid JSON"),
        ("[1, 2]", "not an object"),
        ('{"hidden_size": NaN}', "which is no JSON"),
        ("[" * 100_000, "the pasted text"),
    ],
)
def test_a_broken_config_is_refused_and_the_plan_stays(opened, text, told):
    """What is pasted is read as data; what is none is told in one line, and the answer before it stays."""
    page = opened(**SMALL, gpu="rtx4090", config=packed(config_of()))
    before = page.success[0].value
    page.text_area(key="config.pasted").set_value(text).run()
    assert told in refusal(page)
    assert page.success[0].value == before


def test_a_config_of_an_unknown_architecture_is_named(opened):
    """A config that is JSON but of no known model is refused as the command line refuses it."""
    page = opened(method="lora", config=packed({"model_type": "from_the_moon"}))
    assert "from_the_moon" in refusal(page)


def test_an_uploaded_config_is_bounded(opened):
    """A file beyond the limit is refused by its size before it is read."""
    page = opened(**SMALL, config="")
    page.file_uploader(key="config.uploaded").set_value(
        ("c.json", b" " * (MAX_CONFIG_BYTES + 1), "text/json")
    ).run()
    assert any("this may be a file of weights" in one.value for one in page.error)
    page.file_uploader(key="config.uploaded").set_value(
        ("c.json", json.dumps(config_of()).encode(), "text/json")
    ).run()
    assert not page.error


def test_a_config_too_long_for_a_link_is_asked_for_again(opened):
    """Such a config is answered, and the link holds its place instead of another model's name."""
    # not to be compressed: as long in a link as it is
    noise = "".join(chr(33 + n * n * 7919 % 8161) for n in range(6000))
    page = opened(**SMALL, config="")
    page.text_area(key="config.pasted").set_value(json.dumps({**config_of(), "note": noise})).run()
    assert not page.error
    assert link_of(page)["config"] == ""


@pytest.mark.parametrize("word", ["!", "AAAA", packed({"a": 1})[:-4], "x" * 5000])
def test_a_damaged_config_of_a_link_is_refused(word):
    """A link that was cut or edited does not become another model."""
    with pytest.raises(BadInput):
        unpacked(word)


def test_a_config_that_unfolds_without_end_is_refused():
    """What a link carries is unfolded up to the limit of a config and no further."""
    with pytest.raises(BadInput, match="cut or too long"):
        unpacked(packed({"a": "0" * (MAX_CONFIG_BYTES + MIB)}))


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.none()))
def test_a_config_comes_out_of_a_link_as_it_went_in(config):
    """Any mapping survives the link."""
    assert unpacked(packed(config)) == config


# ---- files of one's own


def uploaded(opened, name, content):
    page = opened("evidence", view="own")
    page.file_uploader(key="evidence.file").set_value((name, content, "application/octet-stream")).run()
    assert not page.exception
    return page


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"x,y\n1,2\n", "the columns of no known table"),
        ("a.csv", b"\xff\xfe\x00", "no text in UTF-8"),
        ("a.json", b"{", "holds no JSON"),
        ("a.json", b'{"schema_version": 99}', "no record of schema version"),
        ("a.json", b'{"schema_version": 1, "request": {}, "memory": {}}', "model is missing"),
        (
            "a.json",
            b'{"schema_version": 1, "request": {"model": "gpt2"}, "memory": {}}',
            "holds no figures of memory",
        ),
        ("weights.safetensors", b"\x00" * 64, "neither CSV nor JSON"),
    ],
)
def test_a_file_that_is_no_measurement_is_refused_in_one_line(opened, name, content, told):
    """Uploads are parsed as data; what they are not is told."""
    assert told in refusal(uploaded(opened, name, content))


def test_an_answer_that_is_uploaded_stands_beside_its_prediction(opened):
    """An answer of the same request differs from its prediction by nothing."""
    page = uploaded(opened, "answer.json", estimate(request_of(SMALL)).model_dump_json().encode())
    assert not page.error
    table = next(one.value for one in page.html if "beside the prediction" in one.value)
    assert "+0 B (+0.00%)" in table
    assert "peak allocated" in table


def test_a_table_that_is_uploaded_is_scored(opened):
    """A CSV of measurements is scored as `peftplan validate --data` scores it."""
    from peftplan.catalog.profiles import published_tables

    path = next(path for path in published_tables() if path.name == "oom_outcomes.csv")
    page = uploaded(opened, "mine.csv", path.read_bytes())
    assert not page.error
    assert any("measurements compared" in one.value.replace("\\", "") for one in page.markdown)
