"""The service of a grid: its rows are estimates, refused points stay in it, and what cannot be asked is said."""

from __future__ import annotations

import json

import pytest

from peftplan import Request, estimate, planner, sweep
from peftplan.errors import BadInput, NotFound, PeftplanError
from peftplan.sweeps import EVERY_BLOCK_UP_TO, EXTRAPOLATED, MAX_POINTS, SweepReport

PARTS = ("method", "gpu", "time", "cost")
GRIDS = [
    (Request(model="llama-3-8b", gpu="a100-80gb"), {"rank": [8, 32], "seq_len": [128, 777], "micro_batch": [1, 3]}),
    (
        Request(model="gpt2", method="full", gpu="rtx-4090"),
        {"kernels": ["eager", "fused"], "seq_len": [128, 1024], "optimizer": ["adamw", "sgd"]},
    ),
    (
        Request(model="llama-3.2-1b", gpu="h100", tokens=10**7),
        {"method": ["lora", "qlora"], "grad_accum": [1, 4], "seq_len": [512, 640, 768]},
    ),
    (
        Request(model="gpt2", seq_len=256),
        {"model": ["gpt2", "t5-small"], "gpu": ["t4", "a100-80gb"], "gpus": [1, 2]},
    ),
    (
        Request(model="gpt2", gpu="l4"),
        {"targets": ["attention", ["c_attn"]], "checkpointing": [True, False], "seq_len": [64, 65]},
    ),
]


def alone(request, point):
    """What an estimate says of one point, with nothing shared or kept."""
    planner._KEPT.clear()
    return estimate(request.model_copy(update=point))


@pytest.mark.parametrize(("request_", "over"), GRIDS)
def test_every_row_is_the_estimate_of_its_point(request_, over):
    """Every figure of every part, breakdown included, is what an estimate of the same request says."""
    planner._KEPT.clear()
    report = sweep(request_, over, every_block=True, breakdown=True)
    for row in report.rows:
        asked = alone(request_, row.point)
        assert row.error is None
        assert row.memory.model_dump() == asked.memory.model_dump()
        for part in PARTS:
            ours, theirs = getattr(row, part), getattr(asked, part)
            assert (ours and ours.model_dump()) == (theirs and theirs.model_dump()), part
        assert sorted([*row.notes, *report.notes]) == sorted(asked.notes)


def test_a_large_grid_says_what_it_extrapolates_and_differs_in_that_alone():
    """Without a replay of every block only what follows from reserved memory may differ, and a note says so."""
    request, over = GRIDS[0]
    whole, quick = (sweep(request, over, every_block=every) for every in (True, False))
    assert EXTRAPOLATED in quick.notes
    assert EXTRAPOLATED not in whole.notes
    from_reserved = {"peak_reserved_bytes", "device_bytes", "interval"}
    for ours, theirs in zip(quick.rows, whole.rows, strict=True):
        assert ours.memory.model_dump(exclude=from_reserved) == theirs.memory.model_dump(exclude=from_reserved)
        assert (ours.method, ours.time, ours.cost) == (theirs.method, theirs.time, theirs.cost)
        assert ours.memory.peak_reserved_bytes == pytest.approx(theirs.memory.peak_reserved_bytes, rel=0.05)


def test_the_size_of_a_grid_decides_whether_it_extrapolates():
    """Up to the limit every block is replayed; one point more, and the note appears."""
    request = Request(model="gpt2", seq_len=8, checkpointing=False)
    few, many = (
        sweep(request, {"alpha": list(range(1, number + 1))})
        for number in (EVERY_BLOCK_UP_TO, EVERY_BLOCK_UP_TO + 1)
    )
    assert EXTRAPOLATED not in few.notes
    assert EXTRAPOLATED in many.notes


def test_rows_come_in_the_order_of_the_grid():
    """The last field varies fastest, whatever order the points are answered in."""
    over = {"gpu": ["l4", "t4"], "micro_batch": [2, 1], "rank": [4, 2]}
    report = sweep(Request(model="gpt2", seq_len=16), over)
    assert [tuple(row.point.values()) for row in report.rows] == [
        (gpu, batch, rank) for gpu in ("l4", "t4") for batch in (2, 1) for rank in (4, 2)
    ]
    assert [row.method.num_trainable_params for row in report.rows[:2]] == [589824, 294912]


def test_json_holds_the_varied_fields_beside_the_parts():
    """Fields stand beside memory, method, gpu, time and cost; one called like a part stands in `point` alone."""
    report = sweep(Request(model="gpt2", seq_len=16), {"rank": [4], "method": ["lora"], "gpu": ["l4"]})
    (row,) = json.loads(report.model_dump_json())["rows"]
    assert row["rank"] == 4
    assert row["point"] == {"rank": 4, "method": "lora", "gpu": "l4"}
    assert row["method"]["kind"] == "lora"
    assert row["gpu"]["name"].startswith("L4")
    assert {"memory", "method", "gpu", "time", "cost", "error"} <= set(row)
    assert row["memory"]["breakdown"] is None


def test_a_refused_point_is_a_row_with_the_reason():
    """A contradiction ends its own point only, with the text that an estimate refuses it with."""
    over = {"kbit_prepare": [True, False], "method": ["lora", "qlora"]}
    report = sweep(Request(model="gpt2", seq_len=16), over)
    first, *others = report.rows
    with pytest.raises(PeftplanError) as refused:
        estimate(Request(model="gpt2", seq_len=16, kbit_prepare=True, method="lora"))
    assert first.error == str(refused.value)
    assert (first.memory, first.method) == (None, None)
    assert [row.error for row in others] == [None] * 3
    assert report.notes[-1] == "1 of 4 points are refused: their rows say why"


def test_where_all_points_are_refused_alike_the_reason_is_raised():
    """A model that does not exist is no grid of errors."""
    with pytest.raises(NotFound, match="no-such-model"):
        sweep(Request(model="no-such-model"), {"rank": [1, 2]})


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({}, "at least one field"),
        ({"rnk": [1]}, "'rnk' is no field"),
        ({"rank": []}, "no values"),
        ({"rank": 8}, "no list of values"),
        ({"model": "gpt2"}, "no list of values"),
        ({"rank": [8, 0]}, "rank: 0 is not allowed"),
        ({"micro_batch": [1.5]}, "micro_batch: 1.5 is not allowed"),
        ({"attention": ["flsh"]}, "attention: 'flsh' is not allowed"),
        ({"rank": range(1, MAX_POINTS + 2)}, "is the most"),
        ({"engine": ["closed", "trace"]}, "closed form"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_line(over, said):
    """Unknown fields, empty lists, values outside their bounds, too many points, and the trace."""
    with pytest.raises(BadInput, match=said) as refused:
        sweep(Request(model="gpt2"), over)
    assert "\n" not in str(refused.value)


def test_progress_is_told_once_a_point():
    """The share that is done rises to one."""
    told = []
    sweep(
        Request(model="gpt2", seq_len=16),
        {"rank": [1, 2, 4]},
        progress=lambda share, words: told.append((round(share, 3), words)),
    )
    assert told == [(0.333, "1 of 3"), (0.667, "2 of 3"), (1.0, "3 of 3")]


def test_the_package_offers_the_function_after_its_module_is_loaded():
    """`from peftplan import sweep` is the function, also once the module behind it is there."""
    import peftplan
    import peftplan.sweeps

    assert peftplan.sweep is peftplan.sweeps.sweep
    assert isinstance(peftplan.sweep(Request(model="gpt2", seq_len=8), {"rank": [1]}), SweepReport)
