"""Which adapters rows of one batch may have of their own, and as which pairs of matrices."""

from __future__ import annotations

import pytest

from peftplan import Request
from peftplan.methods import METHODS
from peftplan.methods.bypass import Pair, gathered_pairs
from peftplan.resolve import resolve

# Methods whose adapter is a product beside a linear and nothing else, as peft and servers mix them.
MIXED = {
    *("lora", "qlora", "rslora", "lora-plus", "lora-fa"),
    *("pissa", "olora", "loftq", "eva", "lora-ga", "corda"),
}


def pairs_of(**fields: object) -> tuple[Pair, ...] | None:
    """Of a model of the catalogue with a method on it."""
    plan = resolve(Request(**{"model": "llama-2-7b", "checkpointing": False, **fields}))  # type: ignore[arg-type]
    model = plan.model
    plan.method.apply(model, plan.method_spec)
    return gathered_pairs(model)


def test_pairs_are_those_of_the_targets() -> None:
    """Two matrices for each linear, with as many layers as the model has."""
    assert pairs_of(targets="q_proj,down_proj", rank=4) == (
        Pair(4096, 4, 4096, 32),
        Pair(11008, 4, 4096, 32),
    )


@pytest.mark.parametrize("method", sorted(MIXED))
def test_low_rank_products_are_gathered(method: str) -> None:
    """What only starts or trains in another way is served as LoRA is."""
    found = pairs_of(method=method)
    assert found is not None
    assert sum(pair.count for pair in found) == 7 * 32


@pytest.mark.parametrize("method", ["dora", "loha", "oft", "ia3", "vera", "adalora", "prompt-tuning"])
def test_others_are_not(method: str) -> None:
    """What changes the weight, or the linear's own result, is none."""
    assert method in METHODS
    assert pairs_of(method=method) is None


def test_experts_have_pairs_that_peft_does_not_mix() -> None:
    """Experts kept as one tensor have a pair each, beside the linears of attention and the router."""
    found = pairs_of(model="mistralai/Mixtral-8x7B-v0.1")
    assert found is not None
    assert {pair.experts for pair in found} == {1, 8}
    assert not any(pair.of_linear for pair in found if pair.experts == 8)
    assert sum(pair.count for pair in found if pair.of_linear) == 4 * 32


def test_a_module_saved_whole_is_none_of_them() -> None:
    """An adapter with a copy of the output head is more than its pairs."""
    assert pairs_of(modules_to_save=["lm_head"]) is None
