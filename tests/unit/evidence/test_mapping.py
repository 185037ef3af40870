"""Columns become requests by rules: what each says, and what sets a row aside."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from peftplan.errors import BadInput
from peftplan.evidence.cells import SetAside
from peftplan.evidence.libraries import libraries, version_fields
from peftplan.evidence.mapping import gpu_key, request_fields
from peftplan.evidence.rows import cases, memory_run, oom_run
from peftplan.evidence.stacks import foreign_kernels
from peftplan.evidence.tables import Row, Table, read_table

PUBLISHED = Path(__file__).parents[3] / "profiles" / "published"


def stock(**changes: str) -> Row:
    """A row that can be compared: QLoRA with Trainer on one A100, packed."""
    with (PUBLISHED / "memory.csv").open(encoding="utf-8", newline="") as file:
        row = next(
            r for r in csv.DictReader(file) if r["framework_config"] == "baseline-peft-bnb" and r["n_gpus"] == "1"
        )
    return {**row, "mixed_precision": "bf16", "base_dtype": "bf16", **changes}


def test_a_stock_row_becomes_its_request() -> None:
    """Every field of a run is read from its column."""
    fields = request_fields(stock())
    assert {
        name: fields[name] for name in ("model", "method", "quant", "double_quant", "kbit_prepare", "loop")
    } == {
        "model": "mistralai/Mistral-7B-v0.1",
        "method": "qlora",
        "quant": "nf4",
        "double_quant": True,
        "kbit_prepare": True,
        "loop": "trainer",
    }
    assert fields["targets"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (fields["attention"], fields["checkpointing"], fields["optimizer"]) == ("flash", True, "adamw")
    assert (fields["precision"], fields["base_dtype"], fields["gpu"]) == ("bf16-mixed", "bf16", "a100-80")


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"notes": "plugin installs PEFT without fp32 upcast of non-quantised params"}, "kbit_prepare", False),
        ({"quant_norm": "nf4"}, "double_quant", False),
        ({"mixed_precision": "none (pure)"}, "precision", "bf16"),
        ({"mixed_precision": "compute fp16; whatever"}, "precision", "bf16"),
        ({"attn_impl": "sdpa (flash backend)"}, "attention", "sdpa"),
        ({"gc_norm": "none"}, "checkpointing", False),
        ({"optimizer": "adamw_torch_fused"}, "optimizer", "adamw-fused"),
        ({"target_modules": "ALL linear (c_attn c_proj)"}, "targets", "all-linear"),
        ({"framework": "plain torch loop (transformers + peft)"}, "keep_outputs", True),
        ({"method": "lora/rslora"}, "use_rslora", True),
        ({"lora_rank": "16.0"}, "rank", 16),
    ],
)
def test_each_column_says_its_part(changes: dict[str, str], field: str, value: object) -> None:
    """A column's own words decide a field."""
    assert request_fields(stock(**changes))[field] == value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "full/galore"}, "not modelled"),
        ({"method": "lora/unheard-of"}, "not modelled"),
        ({"quant_norm": "gptq-int4"}, "gptq-int4"),
        ({"n_gpus": "2", "sharding": "fsdp full_shard"}, "2 GPUs"),
        ({"sharding": "FSDP2"}, "sharding"),
        ({"cpu_offload": "params"}, "offload"),
        ({"model": "nobody/nothing"}, "catalogue"),
        ({"framework": "litgpt"}, "model or a loop of its own"),
        ({"compile": "yes"}, "torch.compile"),
        ({"shape_known": "distribution"}, "lengths vary"),
        ({"lora_rank": ""}, "lora_rank is not stated"),
        ({"micro_batch": "1.5"}, "whole number"),
        ({"optimizer": "sophia"}, "optimizer"),
        ({"gc_norm": "selective"}, "checkpointing"),
        ({"attn_impl": ""}, "attn_impl"),
        ({"fused_ce": "chunked CE"}, "loss"),
        ({"base_dtype": "fp8"}, "base_dtype"),
        ({"target_modules": "layers=2/step=20"}, "names no modules"),
    ],
)
def test_a_row_that_cannot_be_compared_says_why(changes: dict[str, str], reason: str) -> None:
    """The reason names the column's value, in one line."""
    with pytest.raises(SetAside, match=r"(?s).") as caught:
        request_fields(stock(**changes))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"metric_norm": "torch_reserved_p99"}, "no peak"),
        ({"metric_norm": "unstated"}, "not known"),
        ({"per_gpu": "no"}, "total"),
        ({"quality": "C"}, "quality C"),
        ({"memory_unit": "GB(ambiguous)", "memory_gib": ""}, "ambiguous"),
    ],
)
def test_a_figure_that_says_something_else_is_set_aside(changes: dict[str, str], reason: str) -> None:
    """Percentiles, totals, rounded and ambiguous figures are no peak of one device."""
    with pytest.raises(SetAside) as caught:
        memory_run(stock(**changes))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("printed", "unit", "expected"),
    [("1000", "bytes", 1000), ("2", "MiB", 2 * 2**20), ("3", "GiB", 3 * 2**30), ("4", "GB(1e9)", 4 * 10**9)],
)
def test_units_are_the_ones_printed(printed: str, unit: str, expected: int) -> None:
    """A figure is what the source printed, in the unit it printed."""
    run = memory_run(stock(memory_gb=printed, memory_unit=unit))
    assert run.measured.allocated_bytes == expected


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("NVIDIA A100 (80GB; size not stated)", "a100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA RTX 3090 (24GB, power-limited 280W)", "rtx3090"),
        ("Tesla T4", "t4"),
        ("a card of the future", None),
    ],
)
def test_cards_are_found_under_the_names_that_tables_give_them(words: str, key: str | None) -> None:
    """Brackets explain a name, and the size in them is part of it."""
    found = gpu_key(words)
    assert found is None if key is None else found is not None and found.startswith(key)


def test_versions_are_those_named_or_those_of_the_day() -> None:
    """A row's own versions, in either spelling; for a library it does not name the one of its day."""
    assert libraries({"software": '{"torch": "2.14.0+cu130", "bitsandbytes": null}'}) == {"torch": "2.14.0+cu130"}
    assert libraries({"software": "peft=0.12.0;torch=2.4.1"}) == {"peft": "0.12.0", "torch": "2.4.1"}
    fields = version_fields({"software": "torch=2.4.1", "commit_date": "2024-09-16"})
    assert fields["torch"] == "2.4.1"
    assert fields["transformers"] == "4.44"
    assert version_fields({"software": "transformers=99.0", "commit_date": ""})["transformers"] == "5.23"


def test_foreign_kernels_are_recognised_by_their_words() -> None:
    """Stacks with kernels of their own are named; a stock one is not."""
    assert foreign_kernels(stock()) == ""
    assert "Triton" in foreign_kernels(stock(framework_config="accelerated-peft-bnb-foak"))
    assert "Liger" in foreign_kernels(stock(fused_ce="liger fused linear CE"))


def test_every_published_row_is_read_or_set_aside() -> None:
    """No row is lost: each has a request or one line of reason, in the order of the file."""
    for name in ("memory", "oom_outcomes", "throughput"):
        table = read_table(PUBLISHED / f"{name}.csv")
        found = cases(table)
        assert [case.row for case in found] == list(range(1, len(table.rows) + 1))
        assert all((case.run is not None) or case.reason for case in found)
        assert not any("\n" in case.reason for case in found)


def test_any_words_in_any_column_are_survived() -> None:
    """Whatever a cell holds, a row is read or set aside, never a traceback."""
    base = stock()
    for column in base:
        for words in ("", "?", "none", "n/a", "-", "1e9", "a,b;c", "(", "[x]", "%s", "ä\u2028", "9" * 300):
            table = Table("t.csv", "memory", ({**base, column: words},))
            assert len(cases(table)) == 1


def test_a_run_out_of_memory_has_a_card() -> None:
    """Its request names the card whose capacity it exceeded; an unknown card sets it aside."""
    row = {
        **stock(),
        "quantization": "nf4 double quant",
        "gradient_checkpointing": "True",
        "gpu": "NVIDIA A100-SXM4-40GB",
    }
    run = oom_run(row)
    assert run.outcome == "out_of_memory"
    assert (run.request.gpu, run.request.double_quant) == ("a100-40", True)
    with pytest.raises(SetAside, match="not in the catalogue"):
        oom_run({**row, "gpu": "a card of the future"})


def test_numbers_out_of_bounds_set_a_row_aside() -> None:
    """A value that a request refuses is a reason, not an error."""
    with pytest.raises((SetAside, BadInput)):
        memory_run(stock(seq_len="99999999999"))
