"""Behaviours of older releases, held against what others measured: each is off by gigabytes without its rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftplan.evidence.scoring import Evidence, score
from peftplan.evidence.tables import Table, read_table
from peftplan.scores import Score

PUBLISHED = Path(__file__).parents[2] / "profiles" / "published"
MEMORY = read_table(PUBLISHED / "memory.csv")


def scored(row: int) -> Score:
    """The score of one data row of memory.csv."""
    return score(Evidence((Table("memory.csv", "memory", (MEMORY.rows[row - 1],)),)), ["closed"])[0]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (365, "full bf16 AdamW: the foreach step's copy of the second moment"),
        (371, "LoRA under bf16 autocast, transformers 4.44: logits cast to fp32 and copied by the shift"),
        (664, "QLoRA, transformers 4.48: the loss takes narrow logits, casts and shifts them"),
        (392, "QLoRA without k-bit preparation"),
        (
            379,
            "QLoRA prepared by TRL: its casts under bf16, heads repeated before flash attention, reentrant blocks",
        ),
        (270, "QLoRA prepared under fp16, where TRL casts nothing"),
        (237, "transformers 4.39: rotary tables of 32768 positions in each layer"),
        (398, "Mixtral of transformers 4: experts are linears, packed like others"),
        (128, "LoRA of peft 0.11: adapters in the base's 16 bits"),
        (451, "Granite's logits, scaled before they are cast"),
        (438, "full fine-tuning whose peak is the loss"),
    ],
)
def test_older_releases_as_measured(row: int, what: str) -> None:
    """The prediction is within 0.1 % of what one A100 measured."""
    found = scored(row)
    assert found.used, found.reason
    assert found.error_frac == pytest.approx(0.0, abs=0.001), what


@pytest.mark.parametrize("row", [713, 717, 721, 722, 725, 729])
def test_eager_attention_as_measured_on_a_t4(row: int) -> None:
    """Softmax's backward holds gradient times result, and a plain loop keeps its outputs: within 0.5 %."""
    found = scored(row)
    assert found.used, found.reason
    assert found.error_frac == pytest.approx(0.0, abs=0.005)
