"""Deep recordings from shallow ones: the same events as tracing every block, or a refusal."""

from __future__ import annotations

from typing import Any

import pytest

from peftplan.measure.trace.depth import Depths, choose_depths
from peftplan.measure.trace.extend import extended
from peftplan.measure.trace.recording import Recording
from peftplan.measure.trace.repeat import NotRegularError
from peftplan.measure.trace.replay import replay

PATH = "model.layers"


def recorded(author: Any, depth: int, odd: int = 0, listed: bool = False) -> Recording:
    """Two steps of a model with `depth` blocks; one in `odd` is wider; `listed` makes a tensor over all blocks."""

    def width(block: int) -> int:
        return 3000 if odd and block % odd == odd - 1 else 2000

    def name(block: int) -> str:
        return f"base_model.model.{PATH}.{block}.mlp"

    author.recording = Recording(facts={"num_params": 100 + 10 * depth, "notes": []})
    for block in range(depth):
        author.make(width(block), "parameter", name(block), "load")
    author.make(5000, "parameter", "base_model.model.lm_head", "load")
    author.mark("loaded")
    for step in range(2):
        author.mark("forward", step)
        given = author.make(700, "input", "")
        hidden = author.make(600, "activation", "base_model.model.model.embed_tokens")
        saved, casts = [], []
        for block in range(depth):
            casts.append(author.make(width(block) // 2, "activation", name(block), "_to_copy"))
            author.end(author.make(900, "activation", name(block)))
            after = author.make(600, "activation", name(block), "add")
            saved.append(hidden)
            hidden = after
        author.mark("loss", step)
        logits = author.make(4000, "activation", "base_model.model.lm_head")
        author.end(*casts[::2], *casts[1::2])  # in no order, as a cache gives them back
        author.mark("forward end", step)
        author.mark("backward", step)
        grad = author.make(600, "temporary", "base_model.model.lm_head")
        author.end(logits, hidden)
        gradients = {}
        for block in reversed(range(depth)):
            before = author.make(600, "temporary", "MulBackward0")
            gradients[block] = author.make(width(block), "gradient", name(block), "mm")
            author.end(grad, saved[block])
            grad = before
        author.end(grad)
        author.mark("optimizer_step", step)
        if step == 0:
            for block in range(depth):
                author.make(2 * width(block), "optimizer state", name(block), "zeros_like")
        held = [author.make(width(block), "temporary", name(block), "sqrt") for block in range(depth)]
        if listed:
            held.append(author.make(4 * depth, "temporary", "", "stack"))
        author.end(*reversed(held))
        author.end(*(gradients[block] for block in range(depth)), given)
    return author.recording


def story(recording: Recording) -> Any:
    """Births by size, category and module; the frees between them without their order; marks."""
    told: list[Any] = []
    frees: list[int] = []
    for code in recording.events:
        if code > 0:
            number = code - 1
            columns = (recording.categories, recording.operations, recording.modules)
            told += [sorted(frees), (recording.sizes[number], *(recording.text(c, number) for c in columns))]
            frees = []
        else:
            frees.append(-code)
    return told, sorted(frees), recording.marks


@pytest.mark.parametrize("depth", [12, 13, 40])
@pytest.mark.parametrize(("odd", "kinds"), [(0, [0]), (2, [0, 1]), (3, [0, 0, 1])])
@pytest.mark.parametrize("listed", [False, True])
def test_extended_is_what_tracing_every_block_gives(
    author: Any, depth: int, odd: int, kinds: list[int], listed: bool
) -> None:
    """Sizes, modules, order, moments and facts are those of the deep model itself, and so are all totals."""
    every = (kinds * depth)[:depth]
    depths = choose_depths(every)
    if depths is None:
        assert depth < 20
        return
    shallow = recorded(author, depths.shallow, odd, listed)
    deeper = recorded(author, depths.deeper, odd, listed)
    made, wanted = extended(shallow, deeper, PATH, depths, depth), recorded(author, depth, odd, listed)
    assert story(made) == story(wanted)
    assert made.facts == wanted.facts
    a, b = replay(made), replay(wanted)
    assert (a.phases, a.segments.reserved.num_bytes) == (b.phases, b.segments.reserved.num_bytes)


def test_blocks_that_do_something_else_are_refused(author: Any) -> None:
    """Where the deeper of the two traces is not the shallow one extended, nothing is made up."""
    shallow = recorded(author, 5)
    with pytest.raises(NotRegularError):
        extended(shallow, recorded(author, 7), PATH, Depths(5, 6, 2, 1), 20)


def test_blocks_of_another_mix_are_refused(author: Any) -> None:
    """A period that the blocks do not have is found out."""
    with pytest.raises(NotRegularError):
        extended(recorded(author, 5, 2), recorded(author, 6, 2), PATH, Depths(5, 6, 2, 1), 20)


def test_an_end_far_away_is_refused(author: Any) -> None:
    """A storage of a repeated block that ends alone, outside the blocks, has no place in a longer model."""
    shallow, deeper = recorded(author, 5), recorded(author, 6)
    shallow.events.append(-3)  # the weight of block 2
    with pytest.raises(NotRegularError):
        extended(shallow, deeper, PATH, Depths(5, 6, 2, 1), 20)


@pytest.mark.parametrize(
    ("kinds", "depths"),
    [
        ([0] * 32, Depths(5, 6, 2, 1)),
        ([0] * 12, Depths(5, 6, 2, 1)),
        ([0] * 11, None),
        ([0, 1] * 21, Depths(6, 8, 2, 2)),
        ([1, *[0] * 26], Depths(5, 6, 2, 1)),
        ([1, 1, 1, *[0] * 58], Depths(7, 8, 4, 1)),
        ([0, 0, 0, 0, 0, 1] * 10 + [0, 0], Depths(14, 20, 2, 6)),
        (list(range(30)), None),
        ([0], None),
        ([], None),
    ],
)
def test_depths_keep_the_mix_of_blocks(kinds: list[int], depths: Depths | None) -> None:
    """Alike blocks, alternating ones, first ones apart; none where nothing repeats or little is saved."""
    assert choose_depths(kinds) == depths
    if depths is not None:
        for depth in (depths.shallow, depths.deeper):
            assert (len(kinds) - depth) % depths.period == 0
            assert kinds[:depth][-2:] == kinds[-2:]
