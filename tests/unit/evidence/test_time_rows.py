"""Rows that carry a speed: what each becomes, and why it is set aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftplan.evidence.cells import SetAside
from peftplan.evidence.rows import timed_cases
from peftplan.evidence.tables import Row, Table, read_table
from peftplan.evidence.time_rows import throughput_request, timed_request

PUBLISHED = Path(__file__).parents[3] / "profiles" / "published"
ROW: Row = {
    "source": "somebody's notes",
    "gpu": "A100-80GB-SXM",
    "n_gpus": "1",
    "model": "Meta-Llama-3-8B",
    "method": "lora",
    "micro_batch": "4",
    "seq_len": "2048",
    "grad_ckpt": "True",
    "kernels": "none",
    "tokens_per_s_per_gpu": "3000",
    "mfu": "",
    "hfu": "",
    "note": "",
}


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({}, "kernels", "eager"),
        ({"kernels": "foak-fast-kernels"}, "kernels", "fused"),
        ({"kernels": "compile"}, "kernels", "compiled"),
        ({"kernels": "foak-fast-kernels-liger"}, "loss", "fused"),
        ({"kernels": "+chunkedCE"}, "loss", "chunked"),
        ({"note": "target q,k r=64"}, "targets", ["q_proj", "k_proj"]),
        ({"note": "target q,k r=64"}, "rank", 64),
        ({"kernels": "lora/llama-3.2-3B-rank10-target-mlp"}, "targets", ["gate_proj", "up_proj", "down_proj"]),
        ({"kernels": "lora/llama-3.2-3B-rank7-target-mlp"}, "targets", "mlp"),
        ({"kernels": "lora/llama-3.2-3B-rank32-lorafa"}, "method", "lora-fa"),
        ({"source": "huggingface/peft results"}, "targets", ["q_proj", "v_proj"]),
        ({}, "targets", "all-linear"),
        ({"grad_ckpt": "False"}, "checkpointing", False),
        ({}, "attention", "flash"),
        ({"gpu": "T4"}, "attention", "sdpa"),
        ({"method": "qlora", "kernels": "accelerated-peft-bnb"}, "kbit_prepare", False),
        ({"source": "foundation-model-stack/fms-acceleration refs"}, "use_reentrant", True),
        ({"source": "pytorch/torchtune README.md", "method": "full"}, "precision", "bf16"),
        ({"n_gpus": "2", "note": "DDP"}, "gpus", 2),
    ],
)
def test_each_column_of_a_throughput_table_says_its_part(changes: Row, field: str, value: object) -> None:
    """A few columns, and what a stack is known to do, make a request."""
    assert getattr(throughput_request({**ROW, **changes}), field) == value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hfu": "1.02", "gpu": "A6000"}, "implies 1.02 of the peak of A6000"),
        ({"method": "gptq"}, "method 'gptq' is not modelled"),
        ({"model": "MPT-7b"}, "not in the catalogue"),
        ({"gpu": "TPU v5"}, "not in the catalogue"),
        ({"n_gpus": "8", "kernels": "FULL_SHARD"}, "8 GPUs that share a model's state"),
        ({"n_gpus": "2"}, "how they share a step is not stated"),
        ({"grad_ckpt": ""}, "grad_ckpt is not stated"),
        ({"micro_batch": "0"}, "whole number from 1"),
        ({"kernels": "ewora/llama-3.2-3B-default"}, "'ewora' is not modelled"),
        ({"kernels": "lora/llama-3.2-3B-rank7-lorafa"}, "lorafa"),
        ({"method": "full", "note": "PagedAdamW8bit+optimizer_in_bwd"}, "within backward"),
        ({"kernels": "moe-scattermoe"}, "ScatterMoE"),
    ],
)
def test_what_cannot_be_compared_says_why(changes: Row, reason: str) -> None:
    """Impossible anchors, sharded models and unknown code are set aside by name."""
    with pytest.raises(SetAside, match=reason):
        throughput_request({**ROW, **changes})


MEMORY = read_table(PUBLISHED / "memory.csv")


def memory_row(source: str, **columns: str) -> Row:
    """The first row of a source whose columns say this."""
    return next(
        row
        for row in MEMORY.rows
        if row["source"] == source and all(row[name] == value for name, value in columns.items())
    )


def test_batches_of_samples_alike_in_length_have_their_mean_length() -> None:
    """Where a batch holds samples of about one length, its speed is that of the mean."""
    row = memory_row("peft_metamathqa", method="lora")
    assert timed_request(row).seq_len == 210
    with pytest.raises(SetAside, match="lengths vary"):
        timed_request({**row, "seq_len_kind": "dynamic padding"})


def test_foreign_kernels_are_fused_ones_for_a_speed() -> None:
    """A stack with Triton kernels is listed apart for memory; its speed is that of fused kernels."""
    row = memory_row("fms_acceleration", framework_config="foak-fast-kernels", n_gpus="1", method="lora")
    assert timed_request(row).kernels == "fused"
    row = memory_row("fms_acceleration", framework_config="none", n_gpus="1", method="lora")
    assert timed_request(row).kernels == "eager"
    assert timed_request({**row, "compile": "True"}).kernels == "compiled"


def test_every_row_with_a_speed_is_a_case() -> None:
    """Rows without a speed are none; of those with one, some count and the others say why not."""
    cases = timed_cases(MEMORY)
    assert len(cases) == sum(bool(row["tokens_per_s"]) for row in MEMORY.rows)
    used = [case for case in cases if case.run is not None]
    assert len(used) > 150
    assert all(case.run is not None or case.reason for case in cases)
    assert {case.metric for case in cases} == {"tokens_per_s"}
    assert timed_cases(Table("oom_outcomes.csv", "oom", MEMORY.rows[:2])) == []
