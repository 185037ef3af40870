"""The tracker: births and ends of storages, what they are for, and which module they belong to."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from peftplan.measure.trace.recording import (  # noqa: E402
    ACTIVATION,
    BACKWARD,
    FORWARD,
    GRADIENT,
    KERNEL,
    LOSS,
    PARAMETER,
    RECOMPUTED,
    STEP,
    TEMPORARY,
    WORKSPACE,
    Recording,
)
from peftplan.measure.trace.tracker import Tracker  # noqa: E402


def tracker(kernels: Any = None, device: str = "cpu") -> Tracker:
    """One that runs operations as they are."""
    return Tracker(device, kernels or {}, 1024, lambda *_: None, lambda func, args, kwargs: func(*args, **kwargs))


def made(recording: Recording) -> list[tuple[str, str, int]]:
    """Operation, category and bytes of each storage."""
    return [
        (recording.text(recording.operations, i), recording.text(recording.categories, i), size)
        for i, size in enumerate(recording.sizes)
    ]


def test_a_storage_lives_from_its_first_tensor_to_its_last() -> None:
    """Views add nothing and keep it alive; in-place operations make nothing."""
    watching = tracker()
    with watching:
        x = torch.zeros(8, 4)
        view = x.t()[1:]
        x.add_(1)
        assert (watching.recording.events, watching.live_bytes) == ([1], 128)
        del x
        assert watching.recording.events == [1]
        del view
    assert (watching.recording.events, watching.live_bytes) == ([1, -1], 0)
    assert watching.recording.all_shapes == [(8, 4)]


def test_other_devices_and_empty_tensors_are_not_counted() -> None:
    """A tensor elsewhere, or without bytes, is no memory of this device."""
    watching = tracker()
    with watching:
        torch.zeros(4, device="meta")
        torch.zeros(0)
    assert watching.recording.sizes == []


@pytest.mark.parametrize(
    ("phase", "outside", "inside"),
    [
        (FORWARD, ACTIVATION, ACTIVATION),
        (LOSS, TEMPORARY, ACTIVATION),
        (BACKWARD, TEMPORARY, RECOMPUTED),
        (STEP, TEMPORARY, TEMPORARY),
    ],
)
def test_the_phase_says_what_a_tensor_is_for(phase: str, outside: str, inside: str) -> None:
    """Activations in forward and loss, recomputed ones where a module runs in backward, else temporaries."""
    watching = tracker()
    module = torch.nn.Identity()
    module.forward = lambda: torch.ones(4)
    watching.watch(module)
    with watching:
        watching.enter_phase(phase)
        module()
        torch.ones(8)
    assert [(category, size) for _, category, size in made(watching.recording)] == [(inside, 16), (outside, 32)]


def test_a_tag_overrides_the_phase() -> None:
    """What is known to be a gradient is one, and a standing tensor bears its own name."""
    watching = tracker()
    with watching:
        weight = torch.zeros(4)
        watching.standing("layer.weight", weight, PARAMETER)
        watching.enter_phase(BACKWARD)
        gradient = torch.ones(4)
        watching.tag([gradient, None], GRADIENT)
    recording = watching.recording
    assert [category for _, category, _ in made(recording)] == [PARAMETER, GRADIENT]
    assert recording.text(recording.modules, 0) == "layer.weight"


def test_a_kernels_buffers_come_together_and_go() -> None:
    """Both are alive at once, none afterwards; buffers of no bytes are left out."""
    watching = tracker()
    watching.buffers([100, 0, 20], "kernel")
    assert watching.recording.events == [1, 2, -1, -2]
    assert made(watching.recording) == [("kernel", KERNEL, 100), ("kernel", KERNEL, 20)]
    assert watching.live_bytes == 0


def test_workspaces_of_cublas_stay() -> None:
    """One for each thread that multiplies matrices."""
    watching = tracker()
    watching.take_cublas_workspace("forward")
    assert not watching.backward_workspace_taken
    watching.take_cublas_workspace("backward")
    assert watching.backward_workspace_taken
    assert watching.live_bytes == 2 * 1024
    assert {category for _, category, _ in made(watching.recording)} == {WORKSPACE}


def test_a_kernel_answers_in_place_of_its_operation() -> None:
    """What the kernel returns is what the caller gets; only what it records is recorded."""

    def kernel(watching: Tracker, func: Any, args: Any, kwargs: Any) -> Any:
        watching.buffers([7], func._name)
        return args[0]

    watching = tracker({torch.ops.aten.sin.default: kernel})
    x = torch.ones(4)
    with watching:
        assert torch.sin(x) is x
    assert made(watching.recording) == [("aten::sin", KERNEL, 7)]


def test_the_loss_ends_with_the_gradient_of_its_log_softmax() -> None:
    """The operation after it belongs to backward."""
    watching = tracker()
    logits = torch.zeros(3, 5, requires_grad=True)
    with watching:
        watching.enter_phase(LOSS)
        loss = torch.nn.functional.cross_entropy(logits * 2, torch.zeros(3, dtype=torch.long))
        loss.backward()
    marks = [(mark.name, mark.event) for mark in watching.recording.marks]
    assert [name for name, _ in marks] == [LOSS, BACKWARD]
    born = [abs(code) - 1 for code in watching.recording.events[marks[1][1] :] if code > 0]
    assert [watching.recording.text(watching.recording.operations, i) for i in born] == ["aten::mul.Tensor"]


def test_gradients_that_meet_are_summed_in_place_only_in_backward() -> None:
    """The engine's sum makes no storage; the same sum in forward makes one."""
    watching = tracker()
    x = torch.ones(4, requires_grad=True)
    with watching:
        watching.enter_phase(FORWARD)
        h = x * 2
        y = h * 3 + h * 4
        watching.enter_phase(BACKWARD)
        y.backward(torch.ones(4))
    sums = [operation for operation, _, _ in made(watching.recording) if "add" in operation]
    assert sums == ["aten::add.Tensor"]
    assert torch.equal(x.grad, torch.full((4,), 14.0))


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad * 2


class _Doubling(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return _Twice.apply(x)


def test_backward_belongs_to_the_module_of_its_forward() -> None:
    """A frozen module's first operation makes no node, and does not take over the one before it."""
    frozen = torch.nn.Linear(4, 4).requires_grad_(False)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), _Doubling(), frozen, torch.nn.SiLU())
    watching = tracker()
    watching.watch(model)
    x = torch.ones(2, 4)
    with watching:
        watching.enter_phase(FORWARD)
        out = model(x)
        watching.enter_phase(BACKWARD)
        out.backward(torch.ones(2, 4))
    recording = watching.recording
    begin = recording.mark(BACKWARD).event
    found = defaultdict(set)
    for code in recording.events[begin:]:
        if code > 0:
            found[recording.text(recording.modules, code - 1)].add(recording.text(recording.operations, code - 1))
    assert found["4"] == {"aten::silu_backward"}
    assert found["3"] == {"aten::mm"}
    assert found["2"] == {"aten::mul.Tensor"}
    assert found["1"] == {"aten::tanh_backward"}
    assert "aten::mm" in found["0"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_modules_of_a_llama_with_adapters(reentrant: bool) -> None:
    """Forward, recomputation and backward of each block name the same modules, adapters among them."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    from tiny_models import tiny_job

    from peftplan.measure.trace.runner import run

    job = tiny_job("llama", "lora", checkpointing=True, use_reentrant=reentrant, autocast="bf16")
    recording = run(job, lambda *_: None)
    begin = recording.mark(FORWARD, 1).event
    block = "base_model.model.model.layers.1"
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for code in recording.events[begin : recording.mark(STEP, 1).event]:
        module = recording.text(recording.modules, code - 1) if code > 0 else ""
        if module.startswith(block):
            category = recording.text(recording.categories, code - 1)
            found[category].add((module.removeprefix(block), recording.text(recording.operations, code - 1)))
    # without reentrance it ends with the last tensor that backward needs, before the last adapter's product
    left_out = (
        set() if reentrant else {(".mlp.down_proj", "aten::mul.Tensor"), (".mlp.down_proj", "aten::add.Tensor")}
    )
    left_out |= set() if reentrant else {(".mlp.down_proj.lora_B.default", "aten::mm")}
    assert found[RECOMPUTED] == found[ACTIVATION] - left_out
    linears = {f".self_attn.{name}_proj" for name in "qkvo"} | {
        f".mlp.{name}_proj" for name in ("gate", "up", "down")
    }
    parts = {
        f"{linear}{part}" for linear in linears for part in (".base_layer", ".lora_A.default", ".lora_B.default")
    }
    multiplied = {module for module, operation in found[ACTIVATION] if operation == "aten::mm"}
    assert multiplied == parts
    assert {module for module, operation in found[TEMPORARY] if operation == "aten::mm"} == parts
    assert (".mlp.act_fn", "aten::silu_backward") in found[TEMPORARY]
    assert {module for module, _ in found[GRADIENT]} == {part for part in parts if "lora" in part}
