"""Every optimizer of the table, its own library traced, against the closed form: equal in bytes.

Libraries beside torch, transformers and bitsandbytes are optional: without one its rows are left out. torchao's
updates are compiled: the trace puts the buffers of Inductor's code in the place of that code.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from test_trace_options import LLAMA, MIXED_TYPES, compared, gpt2

from peftplan import Request, estimate
from peftplan.errors import BadInput, MachineLacks
from peftplan.measure.trace.optimizer_makers import MAKERS
from peftplan.measure.trace.plan import plan_trace
from peftplan.measure.trace.replay import replay
from peftplan.measure.trace.runner import run
from peftplan.optimizers import OPTIMIZERS
from peftplan.planner import settle
from peftplan.resolve import resolve

# By the beginning of a row's name: the package that it is a part of.
PACKAGES = {
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "adam-mini": "adam_mini",
    "lomo": "lomo_optim",
    "adalomo": "lomo_optim",
    "adamw-torchao": "torchao",
    "adamw-offload": "torchao",
    "schedule-free": "schedulefree",
}
# With few tokens in the vocabulary the hidden matrices are the largest tensors.
NARROW = {**LLAMA, "vocab_size": 128}
LOW_RANK = ("galore-adamw", "galore-adafactor", "apollo-adamw", "apollo-mini")
ADAPTERS_TOO = [name for name in OPTIMIZERS if name not in ("adalomo", "adam-mini")]
OF_ONE_KIND = [name for name, row in OPTIMIZERS.items() if row.beside is None and not row.in_backward]


def needed(name: str) -> None:
    """Skip where the optimizer's library is not installed."""
    for beginning, package in PACKAGES.items():
        if name.startswith(beginning):
            pytest.importorskip(package)


def of(name: str, **options: Any) -> dict[str, Any]:
    """A run's options, with this optimizer."""
    needed(name)
    return {"optimizer": name, **options}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_agrees_with_its_library_to_the_byte(name: str) -> None:
    """States, what a step holds, and gradients: both engines say the same of all weights in bf16."""
    compared(NARROW, "full", of(name))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trainers_loop_agrees_to_the_byte(name: str) -> None:
    """Its groups by decay, its clipping and fp32 weights change nothing about that."""
    compared(LLAMA, "full", of(name, loop="trainer", precision="bf16-mixed"))


@pytest.mark.parametrize("name", ADAPTERS_TOO)
def test_adapters_agree_to_the_byte(name: str) -> None:
    """Adapters in fp32 beside a trained copy of the head in bf16."""
    compared(LLAMA, "lora", of(name, **MIXED_TYPES))


@pytest.mark.parametrize("name", OF_ONE_KIND)
def test_steps_inside_backward_agree_to_the_byte(name: str) -> None:
    """Any optimizer, one for each tensor, stepping as its gradient comes."""
    compared(LLAMA, "full", of(name, optimizer_in_backward=True))


@pytest.mark.parametrize("name", LOW_RANK)
@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ("bf16", {"target_modules": "all-linear", "rank": 1000}),
        ("fp32", {"target_modules": ".*down_proj", "rank": 40}),
    ],
)
def test_ranks_and_targets_agree_to_the_byte(name: str, precision: str, options: dict[str, Any]) -> None:
    """A rank above the narrow side, and few targets in fp32, whose singular vectors are kept whole."""
    compared(NARROW, "full", of(name, precision=precision, optimizer_options=options))


@pytest.mark.parametrize("name", ["muon", "adam-mini", "adafactor-torch", "adagrad", "paged-lion", "rmsprop"])
def test_a_family_with_biases_and_a_tied_head_agrees_to_the_byte(name: str) -> None:
    """GPT-2's transposed matrices, biases and tied embeddings."""
    compared(gpt2(), "full", of(name, loop="trainer"))


@pytest.mark.parametrize(
    ("name", "inside"),
    [("adamw", True), ("lion-8bit", True), ("adafactor", True), ("muon", False), ("adafactor-torch", False)],
)
def test_what_the_allocator_reserves_agrees(name: str, inside: bool) -> None:
    """States that are made inside the first backward lie between activations: a segment or two apart at most."""
    request = Request(
        model=LLAMA, method="full", seq_len=256, optimizer=name, optimizer_in_backward=inside, micro_batch=2
    )
    traced = replay(run(plan_trace(request).job, lambda *_: None)).segments.reserved.num_bytes
    assert estimate(request).memory.peak_reserved_bytes == pytest.approx(traced, abs=4 * 1024**2)


@pytest.mark.parametrize("options", [{}, {"offload_gradients": True}, {"minimal_size": 100_000}])
def test_what_lies_on_the_host_agrees_to_the_byte(options: dict[str, Any]) -> None:
    """Pinned weights and gradients, and the states of an optimizer for each of them."""
    request = Request(model=LLAMA, method="full", seq_len=96, **of("adamw-offload", optimizer_options=options))
    compared(LLAMA, "full", {"optimizer": "adamw-offload", "optimizer_options": options})
    recording = run(plan_trace(request).job, lambda *_: None)
    resident = settle(resolve(request)).account.resident
    assert recording.facts["host_bytes"] == resident.host.requested > 8 * 10**7


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("adam-mini", {"method": "lora"}, "cuts queries and keys into heads"),
        ("muon", {"method": "ln-tuning"}, "nothing that trains here is one"),
        ("adalomo", {"method": "lora"}, "states of frozen weights too"),
        ("galore-adamw", {"method": "full", "optimizer_options": {"target_modules": "nope"}}, "names none"),
    ],
)
def test_what_an_optimizer_cannot_train_both_engines_refuse(name: str, fields: dict[str, Any], words: str) -> None:
    """In one line: the trace before it begins, the closed form when the method has been applied."""
    needed(name)
    request = Request(model=LLAMA, seq_len=32, optimizer=name, **fields)
    with pytest.raises(BadInput, match=words):
        settle(resolve(request))
    with pytest.raises(BadInput, match=words):
        run(plan_trace(request).job, lambda *_: None)


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install, in one line."""
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    request = Request(model=LLAMA, method="full", seq_len=32, optimizer="schedule-free-adamw")
    with pytest.raises(MachineLacks, match="pip install schedulefree"):
        run(plan_trace(request).job, lambda *_: None)


def test_the_trace_knows_every_row() -> None:
    """Each name of the table has its maker; layerwise ones are those of the name before."""
    from peftplan.measure.trace import optimizers

    made = {*optimizers._MAKERS, *MAKERS}
    assert {name.removesuffix("-layerwise") for name in OPTIMIZERS} == made
