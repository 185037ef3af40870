"""Recordings written by hand, a storage at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peftplan.measure.trace.recording import Mark, Recording


class Author:
    """Writes a recording: `make` gives a storage's number, `end` ends it, `mark` notes a moment."""

    def __init__(self) -> None:
        self.recording = Recording()

    def make(
        self,
        num_bytes: int,
        category: str = "activation",
        module: str = "",
        operation: str = "aten::mul",
        shape: tuple[int, ...] = (),
    ) -> int:
        recording = self.recording
        if shape not in recording.all_shapes:
            recording.all_shapes.append(shape)
        recording.sizes.append(num_bytes)
        recording.categories.append(self._text(category))
        recording.operations.append(self._text(operation))
        recording.modules.append(self._text(module))
        recording.dtypes.append(self._text("bfloat16"))
        recording.shapes.append(recording.all_shapes.index(shape))
        recording.events.append(len(recording.sizes))
        return len(recording.sizes) - 1

    def end(self, *numbers: int) -> None:
        self.recording.events += [-(number + 1) for number in numbers]

    def mark(self, name: str, step: int = 0) -> None:
        self.recording.marks.append(Mark(name, step, len(self.recording.events)))

    def _text(self, text: str) -> int:
        if text not in self.recording.texts:
            self.recording.texts.append(text)
        return self.recording.texts.index(text)


def two_steps(author: Author, num_layers: int) -> Recording:
    """Two steps of a small model: weights, activations, a loss, gradients, an optimizer's states."""
    mib = 1 << 20
    for layer in range(num_layers):
        author.make(30 * mib, "parameter", f"model.layers.{layer}.mlp", "weight", (15, mib))
    author.make(5 * mib + 100, "parameter", "model.embed_tokens", "weight")
    for step in range(2):
        author.mark("forward", step)
        given = author.make(1000, "input", operation="ids")
        saved = [author.make(7 * mib + 8, "activation", f"model.layers.{layer}.mlp") for layer in range(num_layers)]
        author.mark("loss", step)
        logits = author.make(64 * mib, "activation", "lm_head")
        author.mark("forward end", step)
        author.end(author.make(64 * mib, "temporary", operation="log_softmax_backward"))
        author.mark("backward", step)
        author.end(logits)
        gradients = []
        for layer in reversed(range(num_layers)):
            gradients.append(author.make(30 * mib, "gradient", f"model.layers.{layer}.mlp", "mm"))
            author.end(saved[layer])
        author.mark("optimizer_step", step)
        if step == 0:
            for layer in range(num_layers):
                author.make(60 * mib, "optimizer state", f"model.layers.{layer}.mlp", "zeros_like")
        author.end(author.make(90 * mib, "temporary", operation="sqrt"))
        author.end(*gradients, given)
    return author.recording


@pytest.fixture
def author() -> Author:
    """An empty recording to write."""
    return Author()


@pytest.fixture
def steps_of(author: Author) -> Callable[[int], Recording]:
    """Two steps of a small model of so many layers; `author` can write on."""
    return lambda num_layers: two_steps(author, num_layers)


@pytest.fixture
def steps(steps_of: Callable[[int], Recording]) -> Recording:
    """Two steps of a small model of three layers."""
    return steps_of(3)
