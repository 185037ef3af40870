"""`fit`: what the most is that fits, and which changes make a run fit."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from peftplan import Request, estimate
from peftplan.advice.fit import fit
from peftplan.answers import AxisLimit, FitReport
from peftplan.catalog import all_models, find_model
from peftplan.changes import RISKS
from peftplan.errors import BadInput
from peftplan.methods import METHODS

ASKED = Request(model="llama-3.2-1b", method="lora", gpu="rtx3060-12")


def limit_of(report: FitReport, axis: str) -> AxisLimit:
    return next(limit for limit in report.axes if limit.axis == axis)


def headroom(request: Request, **fields: Any) -> int:
    gpu = estimate(request.model_copy(update=fields)).gpu
    assert gpu is not None
    return gpu.headroom_bytes


def test_by_default_batch_and_length_are_searched_for() -> None:
    """Without axes: the verdict of an estimate, and the largest micro-batch and length, each alone."""
    report = fit(ASKED)
    assert [limit.axis for limit in report.axes] == ["micro_batch", "seq_len"]
    assert report.estimate == estimate(ASKED)
    assert report.fits
    assert report.changes == ()
    assert report.front is None


@pytest.mark.parametrize("axis", ["micro_batch", "seq_len", "rank"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_most_fits_and_one_more_does_not(axis: str, method: str) -> None:
    """An estimate agrees with both sides of the limit, and with the bytes beside them."""
    request = ASKED.model_copy(update={"method": method})
    limit = limit_of(fit(request, [axis]), axis)
    assert isinstance(limit.value, int)
    assert limit.headroom_bytes == headroom(request, **{axis: limit.value}) >= 0
    assert limit.next_value == limit.value + 1
    assert -limit.next_short_bytes == headroom(request, **{axis: limit.value + 1}) < 0
    assert limit.sure_value is not None
    assert limit.sure_value <= limit.value


def test_what_is_sure_lies_within_the_card_whole() -> None:
    """At the value that is sure the interval ends within the card, at one a tenth above it it does not."""
    sure = limit_of(fit(ASKED, ["seq_len"]), "seq_len").sure_value
    for value, certain in ((sure, True), (sure + sure // 10, False)):
        gpu = estimate(ASKED.model_copy(update={"seq_len": value})).gpu
        assert gpu.fits
        assert gpu.certain is certain


def test_nothing_fits() -> None:
    """Where not even one fits, the limit is None and says what one lacks."""
    request = Request(model="gpt2-xl", method="full", precision="fp32", gpu="t4")
    limit = limit_of(fit(request, ["micro_batch"]), "micro_batch")
    assert (limit.value, limit.sure_value, limit.headroom_bytes) == (None, None, None)
    assert limit.next_value == 1
    assert limit.next_short_bytes == -headroom(request, micro_batch=1)


def test_the_largest_model_of_a_family_and_of_all() -> None:
    """The model fits; no larger one does: of its family in the first answer, of the catalogue in the second."""
    report = fit(ASKED, ["model"])
    family, everything = report.axes
    asked = find_model("llama-3.2-1b")
    assert asked is not None
    for limit, alike in ((family, True), (everything, False)):
        found = find_model(str(limit.value))
        assert found is not None
        assert headroom(ASKED, model=found.id) == limit.headroom_bytes >= 0
        larger = [
            record.id
            for record in all_models()
            if record.num_params > found.num_params
            and (not alike or record.config["model_type"] == asked.config["model_type"])
        ]
        tried = {choice.name: choice.fits for choice in limit.tried}
        assert not any(tried.get(name) for name in larger)
        untried = [find_model(name).num_params for name in larger if name not in tried]
        assert all(num_params > report.estimate.gpu.usable_bytes for num_params in untried)
    assert find_model(str(family.value)).num_params <= find_model(str(everything.value)).num_params


def test_the_method_that_trains_most() -> None:
    """Of the methods that fit, the one that trains most; all are told, and the one above it does not fit."""
    limit = limit_of(fit(ASKED, ["method"]), "method")
    assert {choice.name for choice in limit.tried} == set(METHODS)
    names = [choice.name for choice in limit.tried]
    assert names.index("full") < names.index("lora") < names.index("qlora")
    assert not any(choice.fits for choice in limit.tried[: names.index(limit.value)])
    assert limit.next_value == "full"
    assert -limit.next_short_bytes == headroom(ASKED, method="full") < 0
    small = Request(model="gpt2", gpu="a100-80")
    assert limit_of(fit(small, ["method"]), "method").value == "full"


def test_a_front_has_no_point_that_another_exceeds() -> None:
    """Every point fits, one more on its searched axis does not, and no point is reached by another on both."""
    asked = Request(model="gpt2", gpu="rtx3060-12")
    report = fit(asked, ["micro_batch", "seq_len"])
    assert report.front is not None
    assert report.front.axes == ("micro_batch", "seq_len")
    points = [point.values for point in report.front.points]
    assert len(points) > 2
    for values, point in zip(points, report.front.points):
        gpu = estimate(asked.model_copy(update=values)).gpu
        assert gpu.fits
        assert gpu.certain is point.fits_surely
        assert headroom(asked, **{**values, "seq_len": values["seq_len"] + 1}) < 0
        for other in points:
            assert (
                other is values
                or other["micro_batch"] < values["micro_batch"]
                or other["seq_len"] < values["seq_len"]
            )


def test_a_front_of_methods_keeps_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method is no number: each that fits at some length has its largest one."""
    some = {name: METHODS[name] for name in ("full", "lora", "qlora")}
    monkeypatch.setattr("peftplan.advice.front.METHODS", some)
    monkeypatch.setattr("peftplan.advice.axes.METHODS", some)
    request = Request(model="distilgpt2", gpu="t4")
    points = [point.values for point in fit(request, ["method", "seq_len"]).front.points]
    assert [values["method"] for values in points] == list(some)
    for values in points:
        assert headroom(request, **values) >= 0 > headroom(request, **{**values, "seq_len": values["seq_len"] + 1})


UNFIT = [
    {"micro_batch": 16},
    {"checkpointing": False, "micro_batch": 12, "loop": "trainer"},
    {"method": "full", "precision": "bf16-mixed"},
    {"model": "llama-3.2-3b", "base_dtype": "fp32"},
]


@cache
def fit_of(number: int) -> FitReport:
    return fit(ASKED.model_copy(update=UNFIT[number]), ["micro_batch"])


@pytest.mark.parametrize("number", range(len(UNFIT)))
def test_a_set_of_changes_makes_it_fit(number: int) -> None:
    """The run of a set fits with the room it says, and its savings are what it lacked and that room."""
    request, report = ASKED.model_copy(update=UNFIT[number]), fit_of(number)
    assert not report.fits
    assert report.sets
    for made in report.sets:
        assert made.fits
        after = estimate(Request.model_validate(made.request))
        assert after.gpu is not None
        assert after.gpu.fits
        assert after.gpu.headroom_bytes == made.headroom_bytes
        before = headroom(request)
        assert sum(change.saves_bytes for change in made.changes) == made.headroom_bytes - before
        assert made.risk == max((change.risk for change in made.changes), key=RISKS.index)
    assert report.changes == report.sets[0].changes
    risks = [RISKS.index(made.risk) for made in report.sets]
    assert risks == sorted(risks)
    reasons = [made.why for made in report.sets]
    assert reasons[0] == "least risk"
    assert len(set(reasons)) == len(reasons)
    for made in report.sets:
        assert made.certain or made.why != "sure"


@pytest.mark.parametrize("number", range(len(UNFIT)))
def test_no_change_of_a_set_can_be_left_out(number: int) -> None:
    """Taking back one change of a set leaves a run that does not fit."""
    request = ASKED.model_copy(update=UNFIT[number])
    for made in fit_of(number).sets:
        for left_out in made.changes:
            words = [c.change for c in made.changes if c is not left_out]
            gpu = estimate(with_words(request, words)).gpu
            assert gpu is not None
            assert not (gpu.fits and (gpu.certain or made.why != "sure"))


def with_words(request: Request, changes: list[str]) -> Request:
    """The request with changes made as they are written on the command line."""
    from peftplan.changes import change_groups

    groups = change_groups(estimate(request).request)
    known = {change.text: change.fields for group in groups.values() for change in group}
    fields: dict[str, Any] = {}
    for text in sorted(changes, key=list(known).index):
        fields |= known[text]
    return request.model_copy(update=fields)


def test_a_smaller_micro_batch_keeps_the_batch_of_a_step() -> None:
    """What is halved is made up for by more micro-batches."""
    request = Request(model="gpt2", gpu="rtx3060-12", micro_batch=480, grad_accum=2, loss="fused")
    made = fit(request).sets[0]
    assert any("--micro-batch" in change.change for change in made.changes)
    assert made.request["micro_batch"] * made.request["grad_accum"] == 960
    assert made.risk == "none"


def test_where_no_changes_are_enough_the_most_that_they_save_is_told() -> None:
    """The set says that it does not fit, and by how much."""
    request = Request(model="qwen2.5-32b", method="qlora", seq_len=128, gpu="rtx3060-12")
    (made,) = fit(request).sets
    assert not made.fits
    assert made.headroom_bytes < 0
    assert all(change.saves_bytes > 0 for change in made.changes)
    assert sum(change.saves_bytes for change in made.changes) == made.headroom_bytes - headroom(request)


@pytest.mark.parametrize(
    ("request_", "axes", "said"),
    [
        (Request(model="gpt2"), None, "--gpu"),
        (ASKED.model_copy(update={"engine": "trace"}), None, "trace"),
        (ASKED, ["depth"], "micro_batch, seq_len, rank, model, method"),
        (ASKED, [], "give some of"),
        (ASKED.model_copy(update={"method": "full"}), ["rank"], "adds no adapters"),
        (ASKED, ["micro_batch", "seq_len", "rank"], "one or two"),
        (ASKED, ["model", "rank"], "alone"),
    ],
)
def test_what_cannot_be_answered_is_said_in_one_line(request_: Request, axes: Any, said: str) -> None:
    """A missing GPU, an unknown axis, an axis that means nothing here: one line with what is allowed."""
    with pytest.raises(BadInput, match=said) as error:
        fit(request_, axes)
    assert "\n" not in str(error.value)


def test_a_config_as_a_mapping_is_named() -> None:
    """What is asked of the model axis is a name, also where the model came as a mapping; its family is known."""
    record = find_model("gpt2")
    assert record is not None
    family, _ = fit(Request(model=dict(record.config), gpu="t4"), ["model"]).axes
    assert isinstance(family.asked, str)
    assert family.among.startswith("gpt2")
