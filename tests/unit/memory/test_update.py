"""The optimizer step's allocations, tensor by tensor."""

from __future__ import annotations

from itertools import count

import pytest

from peftplan import Request
from peftplan.memory.update import Event, Script, Update, standing_parameters
from peftplan.planner import Settled, settle
from peftplan.resolve import resolve


def settled(**fields: object) -> Settled:
    """A full fine-tuning of a small model, as the planner settles it."""
    return settle(resolve(Request(model="gpt2", method="full", seq_len=64, **fields)))


def steps_of(run: Settled) -> tuple[list[Event], list[Event], list[Event]]:
    """The gradients that a step finds, and what the first step and a later one do."""
    gradients = Script(count(1_000_000)).new(
        parameter.num_bytes()
        for parameters, block in standing_parameters(run.model)
        for _ in range(block.count if block else 1)
        for parameter in parameters
        if parameter.edge is not None
    )
    update, keys = Update(run.model, run.replay.step), count()
    scripts = [Script(keys), Script(keys)]
    for script, first in zip(scripts, (True, False)):
        script.free(update.write(script, gradients, first))
    return gradients, scripts[0].events, scripts[1].events


def lasting(events: list[Event]) -> list[int]:
    """Sizes of what is allocated and stays."""
    freed = {key for key, size in events if size < 0}
    return [size for key, size in events if size > 0 and key not in freed]


def test_parameters_come_once_for_each_place_in_the_model() -> None:
    """Embeddings first, then every block's, and as many elements in all as the model has with its buffers."""
    model = settled().model
    rows = list(standing_parameters(model))
    assert rows[0][1] is None
    assert [block.count for _, block in rows if block] == [12]
    numel = sum(p.numel * (block.count if block else 1) for parameters, block in rows for p in parameters)
    assert numel == sum(p.numel * times for _, p, times in model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-fused", "adamw-8bit", "sgd-momentum", "adafactor", "lion"])
def test_states_are_made_in_the_first_step_and_stay(optimizer: str) -> None:
    """What the first step leaves is the optimizer's states, rounded; later steps leave nothing."""
    run = settled(optimizer=optimizer)
    _, first, later = steps_of(run)
    assert sum(lasting(first)) == run.account.resident.optimizer_states.allocated
    assert lasting(later) == []


@pytest.mark.parametrize("precision", ["bf16", "bf16-master"])
def test_no_gradient_is_left(precision: str) -> None:
    """Every gradient is freed once, in each step."""
    gradients, first, later = steps_of(settled(precision=precision))
    for events in (first, later):
        freed = [(key, -size) for key, size in events if size < 0]
        assert [made for made in freed if made[0] >= 1_000_000] == gradients


def test_foreach_holds_a_copy_of_every_second_moment_at_once() -> None:
    """Between the births of all copies nothing is freed."""
    run = settled(optimizer="adamw")
    gradients, _, later = steps_of(run)
    copies = [size for _, size in later[: len(gradients)]]
    assert copies == [size for _, size in gradients]
    assert all(size < 0 for _, size in later[len(gradients) :])


def test_gradients_of_masters_are_cast_one_after_another() -> None:
    """A 16-bit gradient goes as soon as its fp32 copy is there."""
    gradients, first, _ = steps_of(settled(precision="bf16-master"))
    casts = first[: 2 * len(gradients)]
    assert [key for key, _ in casts[1::2]] == [key for key, _ in gradients]
    assert all(size > 0 for _, size in casts[::2])


def test_clipping_joins_a_norm_of_every_gradient() -> None:
    """Trainer's step begins with a norm for each gradient, none of which is left when the update begins."""
    run = settled(loop="trainer")
    gradients, _, later = steps_of(run)
    assert [size for _, size in later[: len(gradients)]] == [512] * len(gradients)
    assert lasting(later) == []
