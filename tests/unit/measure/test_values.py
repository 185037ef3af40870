"""Operations whose results depend on values, on fake tensors that have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
fake_tensor = pytest.importorskip("torch._subclasses.fake_tensor")

from peftplan.measure.trace.data_dependent import Answers  # noqa: E402
from peftplan.measure.trace.in_place import one_hot  # noqa: E402
from peftplan.measure.trace.tracker import Tracker  # noqa: E402

BALANCED = "routing is taken as balanced: each of 4 choices is made equally often"


def on_fakes(run: Callable[[], Any]) -> tuple[Any, list[str], Tracker]:
    """What `run` gives inside the trace's modes, what was assumed for it, and the tracker."""
    notes: list[str] = []
    tracker = Tracker(
        "cpu", Answers(notes.append).kernels(), 0, lambda *_: None, lambda func, args, kwargs: func(*args, **kwargs)
    )
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True), tracker:
        return run(), notes, tracker


def test_positions_and_masks_have_their_values() -> None:
    """What is computed from ids, masks and positions is known, so code that asks gets the true answer."""

    def run() -> tuple[Any, ...]:
        mask = torch.ones((2, 6), dtype=torch.long)
        mask[1, 4:] = 0
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        return bool(mask.all()), places.max().item(), mask.sum(-1).tolist(), tuple(mask.nonzero().shape)

    found, notes, _ = on_fakes(run)
    assert found == (False, 5, [6, 4], (10, 2))
    assert notes == []


def test_routing_is_balanced() -> None:
    """Every expert gets its equal share of the tokens' choices, and that this was assumed is said."""

    def run() -> list[int]:
        scores = torch.rand(6, 4)
        chosen = scores.topk(2, dim=-1).indices
        by_expert = one_hot(chosen, 4).permute(2, 1, 0)
        return [torch.where(by_expert[expert])[1].shape[0] for expert in by_expert.sum((1, 2)).nonzero()[:, 0]]

    found, notes, _ = on_fakes(run)
    assert found == [3, 3, 3, 3]
    assert set(notes) == {BALANCED}


def test_a_sort_of_scores_along_another_dimension_is_a_permutation() -> None:
    """Indices along the first dimension differ within each column."""

    def run() -> list[list[int]]:
        order: list[list[int]] = torch.rand(4, 3).argsort(dim=0).t().tolist()
        return order

    found, _, _ = on_fakes(run)
    assert [sorted(column) for column in found] == [[0, 1, 2, 3]] * 3


def test_indices_of_a_mask_are_held_while_it_selects() -> None:
    """x[mask] makes the mask's indices first, as torch does: two of eight bytes for each row that it takes."""

    def run() -> Any:
        mask = torch.tensor([[True, False, True], [False, False, True]])
        return torch.rand(2, 3, 5)[mask]

    out, _, tracker = on_fakes(run)
    recording = tracker.recording
    sizes = [
        size for n, size in enumerate(recording.sizes) if recording.text(recording.operations, n) == "aten::nonzero"
    ]
    assert tuple(out.shape) == (3, 5)
    assert sizes == [3 * 2 * 8]


def test_results_are_as_large_as_the_values_make_them() -> None:
    """Counts, repeats and distinct values follow from known integers."""

    def run() -> tuple[int, ...]:
        ids = torch.arange(6) % 3
        repeated = torch.repeat_interleave(torch.arange(3), ids[:3])
        return ids.unique().shape[0], torch.bincount(ids).shape[0], repeated.shape[0], ids[ids > 0].shape[0]

    assert on_fakes(run)[0] == (3, 3, 3, 4)


def test_what_nobody_knows_is_assumed_and_said() -> None:
    """A test of floating-point numbers fails, a number read is one, a mask of them is set everywhere."""

    def run() -> tuple[Any, ...]:
        x = torch.rand(3, 2)
        return bool((x > 0.5).any()), x.sum().item(), (x > 0.5).nonzero().shape[0], bool(torch.isnan(x).any())

    found, notes, _ = on_fakes(run)
    assert found == (False, 1.0, 6, False)
    assert len(notes) == 3


def test_values_written_by_what_is_unknown_are_forgotten() -> None:
    """An integer tensor filled from scores no longer has the values that it had."""

    def run() -> int:
        counts = torch.zeros(3, dtype=torch.long)
        counts.copy_(torch.rand(3))
        return int(counts[0].item())

    found, notes, _ = on_fakes(run)
    assert found == 1
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("select", "in_place"),
    [
        (lambda x: x[torch.arange(3)], "aten::index_put_"),
        (lambda x: x.topk(2, dim=-1).values, "aten::scatter_"),
        (lambda x: x.gather(1, torch.zeros(4, 1, dtype=torch.long)), "aten::scatter_add_"),
        (lambda x: x.index_select(0, torch.arange(3)), "aten::index_add_"),
    ],
    ids=["index", "topk", "gather", "index_select"],
)
def test_gradients_of_a_selection_fill_one_tensor(select: Callable[[Any], Any], in_place: str) -> None:
    """As on plain tensors: zeros as large as the input are filled, and no second tensor is made."""

    def run() -> Any:
        x = torch.rand(4, 5, requires_grad=True)
        (gradient,) = torch.autograd.grad(select(x).sum(), x)
        return gradient

    gradient, _, tracker = on_fakes(run)
    recording = tracker.recording
    made = {recording.text(recording.operations, n) for n, size in enumerate(recording.sizes) if size == 80}
    assert tuple(gradient.shape) == (4, 5)
    assert made == {"aten::rand", "aten::new_zeros"}
    assert in_place.removesuffix("_") not in made
