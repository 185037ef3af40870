"""Losses that the trace puts in place of the model's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from peftplan.errors import BadInput  # noqa: E402
from peftplan.measure.trace import losses  # noqa: E402

VOCAB, WIDTH = 48, 16


class Model:
    """Something with an output head."""

    def __init__(self, head: Any) -> None:
        self.head = head
        self.loss_function: Any = None

    def get_output_embeddings(self) -> Any:
        return self.head


def installed(loss: str, head: Any) -> tuple[Model, list[str]]:
    """A model with this loss, and what it tells the tracker."""
    told: list[str] = []
    model = Model(head)
    job: Any = SimpleNamespace(loss=loss, compute_capability=(8, 0))
    losses.install(job, model, SimpleNamespace(end_loss=lambda: told.append("end")))  # type: ignore[arg-type]
    return model, told


def test_the_standard_loss_is_the_models_own() -> None:
    """Nothing is replaced."""
    model, _ = installed("standard", torch.nn.Linear(WIDTH, VOCAB, bias=False))
    assert model.loss_function is None


@pytest.mark.parametrize("length", [3, 20])
def test_the_chunked_loss_is_the_usual_one(length: int) -> None:
    """The mean over the tokens that have a next one, with gradients, in pieces of the sequence."""
    torch.manual_seed(0)
    logits = torch.randn(2, length, VOCAB, requires_grad=True)
    labels = torch.randint(VOCAB, (2, length))
    model, _ = installed("chunked", torch.nn.Linear(WIDTH, VOCAB, bias=False))
    found = model.loss_function(logits, labels, vocab_size=VOCAB)
    wanted = functional.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), labels[:, 1:].reshape(-1))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(wanted, logits))


@pytest.mark.parametrize("trained", [False, True])
def test_the_fused_loss_makes_gradients_on_the_way(trained: bool) -> None:
    """The head hands its input on; forward saves the gradients of input and weight, backward gives them out."""
    head = torch.nn.Linear(WIDTH, VOCAB, bias=False).requires_grad_(trained)
    model, told = installed("fused", head)
    hidden = torch.randn(2, 8, WIDTH, requires_grad=True)
    assert head.forward(hidden) is hidden
    loss = model.loss_function(head(hidden), torch.zeros(2, 8, dtype=torch.long))
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    saved = [tuple(part.shape) for part in loss.grad_fn.saved_tensors if part is not None]
    assert saved == [(16, WIDTH)] + [(VOCAB, WIDTH)] * trained
    assert told == []
    loss.backward()
    assert told == ["end"]
    assert hidden.grad.shape == hidden.shape
    assert (head.weight.grad is not None) == trained


@pytest.mark.parametrize("head", ["biased", "wrapped"])
def test_the_fused_loss_needs_a_plain_head(head: str) -> None:
    """A bias or an adapter on the head would be passed over: refused."""
    module = torch.nn.Linear(WIDTH, VOCAB) if head == "biased" else torch.nn.Sequential()
    with pytest.raises(BadInput, match="--loss fused needs a plain output head"):
        installed("fused", module)
