"""Advice from the literature: every record has its source, bears on some run, and touches no figure."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan import Request, estimate
from peftplan.catalog.guidance import EVIDENCE, Guidance, all_guidance
from peftplan.guidance import as_fields, as_line, guidance_for
from peftplan.methods import METHODS
from peftplan.sources import SOURCES

# Runs on which, together, every record bears.
RUNS: list[dict[str, Any]] = [
    {"method": "lora", "targets": "attention", "rank": 64, "micro_batch": 64},
    {"method": "qlora", "base_dtype": "fp16", "precision": "fp16-mixed"},
    {"method": "qlora", "quant": "fp4"},
    {"method": "lora-plus"},
    {"method": "qdora"},
    {"method": "full"},
]
BIG = 70 * 10**9


def advice(num_params: int = BIG, **fields: Any) -> list[Guidance]:
    """What bears on a run of a small model, as if it had so many parameters."""
    return list(guidance_for(estimate(Request(model="gpt2", seq_len=64, **fields)).request, num_params))


@pytest.mark.parametrize("record", all_guidance(), ids=lambda record: f"{record.topic}-{record.source}")
def test_every_record_can_be_looked_up(record: Guidance) -> None:
    """A source that exists, a known grade, and words of its own."""
    assert record.source in SOURCES
    assert record.evidence in EVIDENCE
    assert len(record.text) > 40
    assert record.scope.methods is None or set(record.scope.methods) <= set(METHODS)
    assert SOURCES[record.source].title in as_line(record)
    assert as_fields(record)["where"]


def test_every_record_bears_on_some_run() -> None:
    """None is there that nobody would ever see."""
    styled = Request(model="gpt2", seq_len=64).model_dump() | {"style": "grpo", "quant": None, "base_dtype": "bf16"}
    seen = {id(record) for fields in RUNS for record in advice(**fields)}
    seen |= {id(record) for record in guidance_for(styled, BIG)}
    assert [record.text for record in all_guidance() if id(record) not in seen] == []


def test_advice_keeps_to_its_scope() -> None:
    """What is said of adapters is not said of full fine-tuning; of large models not of small ones."""
    assert {record.topic for record in advice(method="full")} == {"full fine-tuning"}
    sources = [record.source for record in advice(num_params=10**9, method="qlora")]
    assert "qlora-code" not in sources
    assert "rslora" not in [record.source for record in advice(method="rslora", rank=64)]


def test_attention_alone_is_advised_against_where_it_was_asked_for() -> None:
    """And not where all linears are adapted."""

    def said(targets: str) -> bool:
        return any("attention alone" in record.text for record in advice(method="lora", targets=targets))

    assert said("attention")
    assert not said("all-linear")
