"""The catalogue of models: complete records, names that find one model, help after a typo."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from peftplan.catalog import ModelRecord, all_models, find_model, nearest_models
from peftplan.catalog.names import normalise

FACTS = Path(__file__).parents[4] / "shared" / "facts" / "models.json"

# The keys that decide a block's shape, by the names the families give them.
DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers")
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")


def text_tower(record: ModelRecord) -> dict[str, object]:
    return dict(record.config.get("text_config", record.config))


def test_there_are_enough_models() -> None:
    """At least 85 models are known, each under one id."""
    ids = [record.id for record in all_models()]
    assert len(ids) >= 85
    assert len(set(map(normalise, ids))) == len(ids)


@pytest.mark.parametrize("record", all_models(), ids=lambda record: record.id)
def test_every_record_says_what_it_is_and_where_it_comes_from(record: ModelRecord) -> None:
    """A record has an id with its organisation, a count, a source, a date and an architecture."""
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", record.id)
    assert record.num_params > 1_000_000
    assert len(record.source) > 20
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", record.date)
    assert record.config["architectures"]
    assert record.config["model_type"]


@pytest.mark.parametrize("record", all_models(), ids=lambda record: record.id)
def test_every_config_states_its_shape(record: ModelRecord) -> None:
    """A config (or its text tower) states depth, width and vocabulary as positive integers."""
    config = text_tower(record)
    for keys in (DEPTH_KEYS, WIDTH_KEYS, ("vocab_size",)):
        stated = [config[key] for key in keys if key in config]
        assert stated, keys
        assert all(isinstance(value, int) and value > 0 for value in stated), keys


def test_no_name_means_two_models() -> None:
    """Ids, aliases and implied names are unique once case, spaces, dashes and underscores are gone.

    The one exception is deliberate: `llama-7b` and `llama-13b` mean Llama 2, as `llama-70b` must.
    """
    explicit: defaultdict[str, set[str]] = defaultdict(set)
    implied: defaultdict[str, set[str]] = defaultdict(set)
    for record in all_models():
        for name in (record.id, *record.aliases):
            explicit[normalise(name)].add(record.id)
        for name in record.implied_names():
            implied[normalise(name)].add(record.id)
    assert not {name: ids for name, ids in explicit.items() if len(ids) > 1}

    clashing = {name for name, ids in implied.items() if len(ids | explicit.get(name, set())) > 1}
    assert clashing == {"llama7b", "llama13b"}


def test_no_alias_repeats_what_is_implied() -> None:
    """An alias is written down only when the id and the other aliases do not imply it already."""
    for record in all_models():
        spelled = [normalise(alias) for alias in record.aliases]
        assert len(spelled) == len(set(spelled)), record.id
        full_names = (record.id, *(alias for alias in record.aliases if "/" in alias))
        lasts = [name.rpartition("/")[2] for name in full_names]
        given = {normalise(name) for last in lasts for name in (last, last.removesuffix("-hf"))}
        assert given.isdisjoint(normalise(alias) for alias in record.aliases if "/" not in alias), record.id


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("llama-70b", "meta-llama/Llama-2-70b-hf"),
        ("llama-2-70b", "meta-llama/Llama-2-70b-hf"),
        ("meta-llama/Llama-2-70b-hf", "meta-llama/Llama-2-70b-hf"),
        ("META-LLAMA/llama_2_70B_HF", "meta-llama/Llama-2-70b-hf"),
        ("llama 7b", "meta-llama/Llama-2-7b-hf"),
        ("llama-13b", "meta-llama/Llama-2-13b-hf"),
        ("llama-1-7b", "huggyllama/llama-7b"),
        ("huggyllama/llama-7b", "huggyllama/llama-7b"),
        ("llama-65b", "huggyllama/llama-65b"),
        ("llama-3-8b", "meta-llama/Meta-Llama-3-8B"),
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("llama3.1-8b-instruct", "meta-llama/Llama-3.1-8B"),
        ("llama-3.3-70b", "meta-llama/Llama-3.3-70B-Instruct"),
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B"),
        ("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1"),
        ("mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1"),
        ("gpt2-xl", "openai-community/gpt2-xl"),
        ("gpt-3", "openai/gpt-3-175b"),
        ("gpt3", "openai/gpt-3-175b"),
        ("deberta-xxl", "microsoft/deberta-v2-xxlarge"),
        ("gemma-3-4b", "google/gemma-3-4b-pt"),
        ("bloomz-7b1", "bigscience/bloom-7b1"),
    ],
)
def test_what_people_type_finds_the_model(name: str, model_id: str) -> None:
    """Ids, aliases and last parts find their model whatever the case, spaces and dashes."""
    record = find_model(name)
    assert record is not None
    assert record.id == model_id


@pytest.mark.parametrize("name", ["", "llama", "llama-70", "no-such-model", "qwen257b", "/"])
def test_an_unknown_name_finds_nothing(name: str) -> None:
    """A name that is not in the catalogue is not guessed at; the dot of 2.5 counts."""
    assert find_model(name) is None


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("lama-70b", "llama-70b"),
        ("qwen25-7", "Qwen2.5-7B"),
        ("mistrall", "mistral-7b"),
        ("gema-2-9b", "gemma-2-9b"),
        ("meta-lama/Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"),
    ],
)
def test_a_typo_is_answered_by_what_was_meant(typo: str, meant: str) -> None:
    """The first suggestion is the name that was meant."""
    assert find_model(typo) is None
    assert nearest_models(typo)[0] == meant


def test_suggestions_are_names_of_different_models() -> None:
    """Suggestions can be typed as they stand, name one model each, and are at most `n`."""
    for typo in ("lama-70b", "qwen", "phi3.5", "flan"):
        for n in (1, 3, 5):
            found = [find_model(name) for name in nearest_models(typo, n)]
            assert None not in found
            assert len({record.id for record in found if record}) == len(found) <= n


def test_nonsense_gets_no_suggestion() -> None:
    """A name like nothing in the catalogue gets no suggestion rather than a random one."""
    assert nearest_models("zzzzzzzz") == []


def test_a_vision_language_model_counts_its_text_tower() -> None:
    """Gemma 3 4B counts its 3.88 billion text parameters, not the 4.30 billion with vision."""
    record = find_model("gemma-3-4b")
    assert record is not None
    assert record.num_params == 3_880_263_168
    assert "text tower" in record.note


def test_records_cannot_be_changed_by_a_caller() -> None:
    """A record is shared by all callers: neither it nor its config takes an assignment."""
    record = all_models()[0]
    with pytest.raises(AttributeError):
        record.num_params = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        record.config["hidden_size"] = 1  # type: ignore[index]


@pytest.mark.skipif(not FACTS.exists(), reason="the fact sheets are not beside this checkout")
def test_every_model_of_the_fact_sheet_is_carried_over() -> None:
    """Each model of the fact sheet is here with the same config and the same count."""
    by_id = {record.id: record for record in all_models()}
    for model_id, fact in json.loads(FACTS.read_text(encoding="utf-8")).items():
        assert dict(by_id[model_id].config) == fact["config"], model_id
        assert by_id[model_id].num_params == fact["num_params"], model_id
