"""From what a child measured to a record."""

from __future__ import annotations

import copy

import pytest
from stand_in import A100, ANSWER

from peftplan.measure.profile.figures import failed_record, record_of
from peftplan.measure.profile.flop import least_flop, step_flop
from peftplan.measure.profile.plan import plan_run
from peftplan.measured import read_record
from peftplan.request import Request

GPT2 = Request(model="gpt2", micro_batch=2, seq_len=512, grad_accum=2)


def planned(device="cuda", hardware=A100, request=GPT2):
    return plan_run(request, device, hardware)


def answer(**figures):
    told = copy.deepcopy({**ANSWER, "hardware": A100})
    told["figures"].update(figures)
    return told


def test_rates_are_those_of_the_median_step():
    """Tokens of all micro-batches count; energy is a step's share of the timed steps'."""
    found = record_of(planned(), answer()).measured
    assert found.step_s == 0.5
    assert found.tokens_per_s == 2 * 512 * 2 / 0.5
    assert found.energy_j == 100.0
    flop = step_flop(GPT2)
    assert found.flop_per_s == flop / 0.5
    assert found.hfu_frac == pytest.approx(flop / 0.5 / 312e12, rel=0.01)


def test_work_is_that_of_the_played_step():
    """All micro-batches count; forward runs twice in the blocks, and once in the head."""
    once, twice = (least_flop(123_000_000, 0, 2048, recomputed) for recomputed in (False, True))
    assert once < step_flop(GPT2) < twice
    assert step_flop(GPT2) == 2 * step_flop(GPT2.model_copy(update={"grad_accum": 1}))


def test_work_of_what_only_the_trace_knows_is_counted_low():
    """Forward and the gradient of inputs for every weight, its own for what trains, forward again if recomputed."""
    assert step_flop(GPT2.model_copy(update={"model": {"model_type": "mamba2"}})) is None
    assert least_flop(10, 10, 3, recomputed=False) == 6 * 10 * 3
    assert least_flop(10, 0, 3, recomputed=False) == 4 * 10 * 3
    assert least_flop(10, 10, 3, recomputed=True) == 8 * 10 * 3


def test_a_rate_above_the_peak_is_refused():
    """More work than the GPU can do means that the times are wrong: they are dropped, and the run has failed."""
    run = record_of(planned(), answer(step_s_each=[1e-6, 1e-6]))
    assert run.outcome == "failed"
    assert run.measured.step_s is None
    assert run.measured.hfu_frac is None
    assert run.measured.allocated_bytes == 1_000_000_000
    assert any("refused" in note for note in run.notes)


def test_a_cpu_run_is_labelled():
    """A run on the CPU says so, and has no share of a GPU's rate."""
    told = {**answer(), "hardware": {"gpu": "CPU (x86_64, 2 threads)", "num_gpus": 0}}
    run = record_of(planned("cpu", told["hardware"]), told)
    assert run.notes[0].startswith("a run on the CPU")
    assert run.hardware.num_gpus == 0
    assert run.measured.hfu_frac is None


def test_a_card_outside_the_catalogue_is_named():
    """Where no record of the card is known, the record says what the prediction was for."""
    hardware = {**A100, "gpu": "NVIDIA Q9000"}
    run = record_of(planned(hardware=hardware), {**answer(), "hardware": hardware})
    assert any("Q9000 is not in the catalogue" in note for note in run.notes)


def test_a_record_reads_back():
    """What is written is read as the same record, a failed one and one of a config without a name too."""
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "vocab_size": 256}
    own = planned(request=Request(model=config))
    for run in (record_of(planned(), answer()), record_of(own, answer()), failed_record(own, A100, "it fell")):
        assert read_record(run.model_dump_json(), "x") == run
    assert failed_record(own, A100, "it fell").request.model == config


def test_names_are_stable_and_tell_runs_apart():
    """A run's name follows from what is run and on what, and not from what it is predicted with."""
    name = planned().name
    assert name.startswith("nvidia-a100-sxm4-80gb-gpt2-lora-b2-s512-")
    assert planned(request=GPT2.model_copy(update={"engine": "trace"})).name == name
    for change in ({"rank": 8}, {"checkpointing": False}, {"targets": "attention"}, {"precision": "bf16"}):
        assert planned(request=GPT2.model_copy(update=change)).name != name
    assert planned(hardware={**A100, "gpu": "NVIDIA H200"}).name != name


def test_fused_losses_are_refused():
    """A profile has no Liger kernels to run."""
    with pytest.raises(Exception, match="--loss fused"):
        planned(request=GPT2.model_copy(update={"loss": "fused"}))
