"""`estimate --guidance`: advice beside the figures, and none without being asked."""

from __future__ import annotations

import json


def test_no_figure_changes_with_the_advice(run):
    """The answer is the same but for the key that is added."""
    words = ("estimate", "gpt2", "--method", "lora", "--gpu", "t4", "--json")
    plain, guided = run(*words).answer, run(*words, "--guidance").answer
    assert guided.pop("guidance")
    assert guided == plain


def test_advice_is_shown_only_where_it_is_asked_for(run):
    """With its grade and its source."""
    assert "Guidance" not in run("estimate", "gpt2", "--plain").out
    out = run("estimate", "gpt2", "--guidance", "--plain").out
    assert "Guidance: what others report" in out
    assert "LoRA Without Regret" in out


def test_the_schema_has_a_place_for_the_advice(run):
    """Each record with topic, text, evidence and source."""
    schema = json.loads(run("estimate", "--json-schema").out)
    assert "guidance" not in schema.get("required", [])
    assert set(schema["properties"]["guidance"]["items"]["properties"]) >= {"topic", "text", "evidence", "source"}
