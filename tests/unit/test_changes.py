"""What to change when a run does not fit."""

from __future__ import annotations

import pytest

from peftplan import Request, estimate
from peftplan.changes import single_changes
from peftplan.planner import suggest_changes


def test_a_change_sets_what_it_says():
    """The text of a change is the option that sets its field."""
    filled = estimate(Request(model="gpt2", micro_batch=4, checkpointing=False)).request
    changes = dict(single_changes(filled))
    assert changes["--micro-batch 2"] == {"micro_batch": 2}
    assert changes["--checkpointing"] == {"checkpointing": True}
    assert changes["--method qlora"]["method"] == "qlora"
    assert "--no-padding" not in changes
    switched = dict(single_changes({**filled, "checkpointing": True, "padding": True, "use_reentrant": True}))
    assert switched["--no-padding"] == {"padding": False}
    assert switched["--no-use-reentrant"] == {"use_reentrant": False}
    assert "--micro-batch 0" not in dict(single_changes({**filled, "micro_batch": 1}))


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_suggestion_saves_what_it_says(method):
    """A suggested change lowers the peak by exactly the bytes beside it, largest first."""
    request = Request(model="llama-7b", method=method, micro_batch=8, gpu="rtx4090")
    report = estimate(request)
    fields = dict(single_changes(report.request))
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
