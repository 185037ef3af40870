"""`recommend`: every way to carry a run out, answered as an estimate answers it."""

from __future__ import annotations

from functools import cache
from time import process_time
from typing import Any

import pytest

from peftplan import Request, estimate
from peftplan.advice.recommend import ASSUMED_TOKENS, recommend
from peftplan.answers import RecommendReport
from peftplan.catalog import find_gpu
from peftplan.catalog.prices import all_offers
from peftplan.errors import BadInput

ASKED = Request(model="llama-3.2-1b", method="qlora", tokens=20_000_000)


@cache
def answer() -> RecommendReport:
    return recommend(ASKED)


@cache
def tight() -> RecommendReport:
    """A run that cards of 24 GB and less do not hold."""
    return recommend(Request(model="llama-3.2-3b", method="full", tokens=20_000_000))


def test_rows_are_estimates() -> None:
    """A row's memory, time, hours and dollars are those of an estimate of its request."""
    rows = answer().rows
    assert len(rows) > 50
    for row in rows[:: len(rows) // 10]:
        report = estimate(Request.model_validate(row.request))
        assert (row.request["gpu"], row.request["gpus"]) == (row.gpu, row.num_gpus)
        assert row.memory.peak_allocated_bytes == report.memory.peak_allocated_bytes
        assert row.time == report.time
        assert (row.cost.hours, row.cost.usd) == (report.cost.hours, report.cost.usd)
        assert row.cost.usd_low <= row.cost.usd <= row.cost.usd_high
        assert row.cost.price_date == row.rented.date


def test_only_what_fits_is_ranked() -> None:
    """Every ranked card holds the run, as an estimate says; the others stand apart with what they lack."""
    report = tight()
    verdicts = {}
    for row in report.rows:
        if (row.gpu, row.num_gpus > 1) not in verdicts:
            verdicts[row.gpu, row.num_gpus > 1] = estimate(Request.model_validate(row.request)).gpu.fits
    assert verdicts
    assert all(verdicts.values())
    assert report.unfit
    for one in report.unfit[:4]:
        fields = {"gpu": one.gpu, "gpus": one.num_gpus, "model": "llama-3.2-3b", "method": "full"}
        assert not estimate(Request(**fields)).gpu.fits
        assert one.short_bytes > 0
    assert not {(row.gpu, row.num_gpus) for row in report.rows} & {(u.gpu, u.num_gpus) for u in report.unfit}


def test_one_row_for_each_card_count_and_provider_at_its_best_price() -> None:
    """Of a provider's machines alike the cheapest is taken; machines of fewer cards than sold are not made up."""
    rows = answer().rows
    keys = [(row.gpu, row.num_gpus, row.provider) for row in rows]
    assert len(set(keys)) == len(keys)
    best: dict[Any, float] = {}
    for offer in all_offers():
        price = offer.per_gpu()
        if price is not None:
            key = offer.gpu, offer.gpu_count, offer.provider
            best[key] = min(best.get(key, float("inf")), float(price))
    for row, key in zip(rows, keys):
        assert row.rented.usd_per_gpu_hour == best[key]
        assert row.request["price"] == best[key]


def test_the_tokens_of_the_run_stay_and_its_steps_shrink() -> None:
    """With twice the cards there are half as many steps, over the same tokens."""
    by_count = {(row.gpu, row.num_gpus): row for row in answer().rows if row.provider == "lambda"}
    one, four = by_count["h100", 1], by_count["h100", 4]
    assert one.cost.num_tokens == four.cost.num_tokens == ASKED.tokens
    assert four.cost.num_steps == -(-one.cost.num_steps // 4)
    assert four.cost.hours < one.cost.hours


def test_the_answer_can_be_narrowed() -> None:
    """Providers, cards, counts and regions leave only theirs."""
    two = recommend(ASKED, providers=["Lambda", "aws"])
    assert {row.provider for row in two.rows} == {"lambda", "aws"}
    card = recommend(ASKED.model_copy(update={"gpu": "H100"}), max_gpus=2)
    assert {row.gpu for row in card.rows} == {"h100"}
    assert {row.num_gpus for row in card.rows} == {1, 2}
    eight = recommend(ASKED.model_copy(update={"gpu": "h100", "gpus": 8, "provider": "lambda"}))
    assert [(row.num_gpus, row.provider) for row in eight.rows] == [(8, "lambda")]


def test_spot_takes_spot_prices_and_says_what_that_means() -> None:
    """Only machines with a spot price are there, at that price; a note tells of interruptions."""
    report = recommend(ASKED.model_copy(update={"spot": True}))
    spot = {(o.gpu, o.gpu_count, o.provider, float(price)) for o in all_offers() if (price := o.per_gpu(spot=True))}
    assert report.rows
    for row in report.rows:
        assert row.rented.spot
        assert (row.gpu, row.num_gpus, row.provider, row.rented.usd_per_gpu_hour) in spot
    assert any("taken away" in note for note in report.notes)


def test_an_own_price_is_of_one_card() -> None:
    """Of a card whose price is stated, counts up to the most, all at that price."""
    report = recommend(ASKED.model_copy(update={"gpu": "rtx4080", "price": 0.5}))
    assert {row.num_gpus for row in report.rows} == {1, 2, 4, 8}
    for row in report.rows:
        assert row.provider == "own price"
        assert row.cost.usd_per_gpu_hour == 0.5
        assert row.cost.usd == pytest.approx(row.cost.hours * 0.5 * row.num_gpus)


@pytest.mark.parametrize("grad_accum", [1, 16])
def test_a_tuned_batch_fills_the_card(grad_accum: int) -> None:
    """Micro-batches are the largest that are sure to fit; with accumulation the batch of a step stays."""
    request = ASKED.model_copy(update={"grad_accum": grad_accum, "provider": "lambda"})
    plain, tuned = recommend(request), recommend(request, tune_batch=True)
    assert [len(report.rows) for report in (plain, tuned)] == [len(plain.rows)] * 2
    for row in tuned.rows:
        assert row.fit.certain
        size, more = row.request["micro_batch"], row.request["grad_accum"]
        assert size > 1
        assert grad_accum == 1 or size * more == grad_accum
    best = {report.rows[report.recommended].cost.usd for report in (plain, tuned)}
    assert min(best) == tuned.rows[tuned.recommended].cost.usd


def test_limits_are_kept_by_what_is_advised() -> None:
    """The advised row keeps budget and deadline; where nothing does, none is advised."""
    free = answer()
    budget = free.rows[free.recommended].cost.usd * 2
    report = recommend(ASKED, budget_usd=budget, deadline_s=3600)
    advised = report.rows[report.recommended]
    assert advised.within
    assert advised.cost.usd <= budget
    assert advised.cost.hours <= 1
    assert recommend(ASKED, budget_usd=0.001).recommended is None


def test_without_a_length_the_run_is_assumed_and_said_so() -> None:
    """Hours and dollars are those of a stated number of tokens; limits of a run need its length."""
    unknown = ASKED.model_copy(update={"tokens": None})
    report = recommend(unknown, providers=["lambda"])
    assert report.assumed_tokens
    assert report.num_tokens == ASSUMED_TOKENS
    assert f"{ASSUMED_TOKENS:,}" in report.notes[0]
    with pytest.raises(BadInput, match="--tokens"):
        recommend(unknown, deadline_s=3600)


def test_cards_without_a_price_are_named() -> None:
    """A card that holds the run and that nobody rents out is told by name, not ranked."""
    report = answer()
    assert report.unpriced
    priced = {offer.gpu for offer in all_offers()}
    for key in report.unpriced:
        assert find_gpu(key) is not None
        assert key not in {row.gpu for row in report.rows}
    assert any(key not in priced for key in report.unpriced)


@pytest.mark.parametrize(
    ("fields", "limits", "said"),
    [
        ({}, {"budget_usd": -1.0}, "--budget"),
        ({}, {"budget_usd": float("nan")}, "--budget"),
        ({}, {"deadline_s": 0.0}, "--deadline"),
        ({}, {"deadline_s": float("inf")}, "--deadline"),
        ({}, {"max_gpus": 0}, "--max-gpus"),
        ({}, {"providers": ["nobody"]}, "nobody"),
        ({"price": 1.0}, {}, "--gpu"),
        ({"price": 1.0, "gpu": "h100", "provider": "lambda"}, {}, "exclude each other"),
        ({"engine": "trace"}, {}, "trace"),
        ({"targets": "nonesuch"}, {}, "nonesuch"),
    ],
)
def test_what_cannot_be_answered_is_refused(fields: dict[str, Any], limits: dict[str, Any], said: str) -> None:
    """Limits that are none, unknown providers, a price of no card, a contradiction: one line that names it."""
    with pytest.raises(BadInput, match=said) as error:
        recommend(ASKED.model_copy(update=fields), **limits)
    assert "\n" not in str(error.value)


def test_the_whole_catalogue_takes_seconds() -> None:
    """All cards, counts and providers are answered in little time: steps are played by generation, not by card."""
    start = process_time()
    recommend(Request(model="llama-3-8b", method="qlora", tokens=50_000_000))
    assert process_time() - start < 8  # measured: 1.0 on an idle machine; a loaded one takes several times that
