"""Which sums of gradients the engine makes in place: what is asked under a mode is what it does without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from peftplan.measure.trace.sums import adds_into_first, engines_references  # noqa: E402

Graph = Callable[[Any, Any], Any]


class Asked(TorchDispatchMode):
    """What is said of each sum of a backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.engines = engines_references()
        self.answers: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.add.Tensor and not torch.is_grad_enabled():
            self.answers.append(adds_into_first(args, self.engines))
        return func(*args, **kwargs or {})


class Clones(torch.autograd.Function):
    """Hands a copy of its gradient on."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad.clone()


class Keeps(Clones):
    """Holds on to what it hands on."""

    kept: Any = None

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        Keeps.kept = grad.clone()
        return Keeps.kept


class Sums(Clones):
    """Adds in Python: temporaries of its own, which the engine has nothing to do with."""

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return (grad * 2 + grad * 3) + grad


def branches(h: Any, a: Any) -> Any:
    return h * a + h * a


GRAPHS: dict[str, tuple[Graph, list[bool]]] = {
    "two branches": (lambda h, a: h * a + h * a, [True]),
    "three branches": (lambda h, a: h * a + h * a + h * a, [True, True]),
    "both factors": (lambda h, a: h * h, [True]),
    "a residual, whose gradient the other branch reads": (lambda h, a: h + h * a, [False]),
    "functions in Python": (lambda h, a: Clones.apply(h) + Clones.apply(h), [True]),
    "a gradient that somebody keeps": (lambda h, a: h * a + Keeps.apply(h), [False]),
    "a kept gradient that is added": (lambda h, a: Keeps.apply(h) + h * a, [True]),
    "sums within a function": (lambda h, a: Sums.apply(h), [False, False]),
    "a gradient spread out, which overlaps itself": (lambda h, a: h.sum() + h.sum(), [False]),
    "slices, filled up with zeros": (lambda h, a: h[0].sum() + h[1].sum(), [True]),
    "parts of one gradient": (lambda h, a: torch.cat([h, h]) * 2, [False]),
    "a transposed gradient, a view of another": (lambda h, a: h.t() * a + h.t() * a, [False]),
    "a checkpoint": (lambda h, a: checkpoint(branches, h, a, use_reentrant=False) + h * a, [True, True]),
}


def sums_in_place(graph: Graph) -> int:
    """How many sums the engine really makes in place."""
    x = torch.ones(4, 4, requires_grad=True)
    h = x * torch.ones(4, 4)
    out = graph(h, torch.ones(4, 4)).sum()
    with torch.profiler.profile() as logged:
        out.backward()

    def count(event: Any) -> int:
        own = event.name == "aten::add_" and event.cpu_parent.name.startswith("autograd::engine::evaluate_function")
        return int(own)

    return sum(count(event) for event in logged.events() if event.cpu_parent is not None)


@pytest.mark.parametrize("fake", [True, False], ids=["fake", "real"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_sum_is_in_place_where_the_engine_alone_holds_the_first(graph: str, fake: bool) -> None:
    """Real and fake tensors are counted alike, and Python's own sums are told from the engine's."""
    build, expected = GRAPHS[graph]
    asked = Asked()
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else torch.enable_grad():
        a = torch.ones(4, 4)
        x = torch.ones(4, 4, requires_grad=True)
        out = build(x * a, a).sum()
        with asked:
            out.backward()
    assert asked.answers == expected


@pytest.mark.parametrize("graph", [name for name in GRAPHS if "checkpoint" not in name])
def test_the_engine_agrees(graph: str) -> None:
    """As many sums in place as torch's profiler sees in a run without a mode."""
    build, expected = GRAPHS[graph]
    assert sums_in_place(build) == sum(expected)


def test_tensors_of_different_kinds_are_not_added_in_place() -> None:
    """Another type or shape of the second operand, or a number, leaves the first alone."""
    engines = engines_references()
    first = torch.ones(4)
    for second in (torch.ones(4, dtype=torch.float64), torch.ones(1), 1.0):
        assert not adds_into_first((first, second), engines)
