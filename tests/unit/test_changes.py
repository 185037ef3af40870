"""What to change when a run does not fit."""

from __future__ import annotations

import pytest

from peftplan import Request, estimate
from peftplan.changes import change_groups, single_changes
from peftplan.planner import suggest_changes


def fields_by_text(filled):
    return {change.text: change.fields for change in single_changes(filled)}


def test_a_change_sets_what_it_says():
    """The text of a change is the option that sets its field."""
    filled = estimate(Request(model="gpt2", micro_batch=4, checkpointing=False)).request
    changes = fields_by_text(filled)
    assert changes["--micro-batch 2 --grad-accum 2"] == {"micro_batch": 2, "grad_accum": 2}
    assert changes["--checkpointing"] == {"checkpointing": True}
    assert changes["--method qlora"]["method"] == "qlora"
    assert "--no-padding" not in changes
    switched = fields_by_text({**filled, "checkpointing": True, "padding": True, "use_reentrant": True})
    assert switched["--no-padding"] == {"padding": False}
    assert switched["--no-use-reentrant"] == {"use_reentrant": False}
    assert not any("--micro-batch" in text for text in changes_of({**filled, "micro_batch": 1}))


@pytest.mark.parametrize(("micro_batch", "sizes"), [(8, [4, 2, 1]), (12, [6, 3, 1]), (7, [1]), (1, [])])
def test_smaller_micro_batches_make_the_same_batch(micro_batch, sizes):
    """Micro-batches go down by half or more, to sizes of which a whole number makes the batch of a step."""
    filled = estimate(Request(model="gpt2", micro_batch=micro_batch, grad_accum=3)).request
    changes = [change.fields for change in change_groups(filled).get("micro_batch", [])]
    assert [fields["micro_batch"] for fields in changes] == sizes
    assert all(fields["micro_batch"] * fields["grad_accum"] == micro_batch * 3 for fields in changes)


@pytest.mark.parametrize(
    ("options", "text", "risk"),
    [
        ({"checkpointing": False}, "--checkpointing", "none"),
        ({}, "--optimizer paged-adamw-8bit", "low"),
        ({}, "--method qlora", "low"),
        ({"method": "full"}, "--method qlora", "moderate"),
        ({"base_dtype": "fp32"}, "--base-dtype bf16", "low"),
        ({"method": "full", "precision": "fp32"}, "--precision bf16", "moderate"),
        ({}, "--rank 8", "moderate"),
        ({}, "--seq-len 512", "high"),
    ],
)
def test_every_change_has_its_risk(options, text, risk):
    """What a change may do to the trained model is ranked, whatever else is asked."""
    assert {change.text: change.risk for change in changes_of_request(**options)}[text] == risk


def changes_of(filled):
    return [change.text for change in single_changes(filled)]


def changes_of_request(**options):
    return list(single_changes(estimate(Request(model="gpt2", **options)).request))


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_suggestion_saves_what_it_says(method):
    """A suggested change lowers the peak by exactly the bytes beside it, largest first."""
    request = Request(model="llama-7b", method=method, micro_batch=8, gpu="rtx4090")
    report = estimate(request)
    fields = fields_by_text(report.request)
    changes = suggest_changes(request, report)
    assert changes
    assert [c.saves_bytes for c in changes] == sorted((c.saves_bytes for c in changes), reverse=True)
    for change in changes:
        after = estimate(request.model_copy(update=fields[change.change]))
        before = report.memory.peak_allocated_bytes
        assert before - after.memory.peak_allocated_bytes == change.saves_bytes > 0
        assert after.gpu is not None
        assert after.gpu.fits is change.fits


def test_without_a_gpu_no_change_is_said_to_fit():
    """Whether a change is enough can be told only of a GPU."""
    request = Request(model="gpt2", method="full")
    assert not any(change.fits for change in suggest_changes(request, estimate(request)))


def test_a_change_that_contradicts_the_request_is_left_out():
    """What the engine refuses together with the rest of the request is no advice."""
    request = Request(model="bert-base-uncased", seq_len=512, gpu="rtx4090")
    changes = [change.change for change in suggest_changes(request, estimate(request))]
    assert "--seq-len 256" in changes
    assert "--loss fused" not in changes
