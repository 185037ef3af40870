"""A model on meta made one of tensors: ties, buffers, and what bitsandbytes keeps beside a packed weight."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from peftplan.measure.trace.materialize import materialize, tensors  # noqa: E402


def on_cpu(tensor: Any) -> Any:
    """A tensor like it, with values."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def packed(parts: dict[str, Any], **more: Any) -> Any:
    """A parameter of bytes with a quantisation state."""
    weight = torch.nn.Parameter(torch.empty(8, 1, dtype=torch.uint8, device="meta"), requires_grad=False)
    weight.quant_state = SimpleNamespace(**parts, shape=(4, 4))
    for name, value in more.items():
        setattr(weight, name, value)
    return weight


def test_ties_are_kept() -> None:
    """One parameter under two names stays one, and so does a buffer."""
    with torch.device("meta"):
        model = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)])
        shared = torch.zeros(3)
    model[1].weight = model[0].weight
    for part in model:
        part.register_buffer("shared", shared, persistent=False)
    materialize(model, on_cpu)
    assert model[0].weight is model[1].weight
    assert model[0].shared is model[1].shared
    assert model[0].bias is not model[1].bias
    assert {tensor.device.type for _, tensor in tensors(model)} == {"cpu"}


def test_what_is_trained_stays_trained() -> None:
    """Parameters keep their type and whether they ask for a gradient."""
    with torch.device("meta"):
        model = torch.nn.Linear(4, 4, dtype=torch.bfloat16)
    model.weight.requires_grad_(False)
    materialize(model, on_cpu)
    assert (model.weight.requires_grad, model.bias.requires_grad) == (False, True)
    assert (type(model.weight), model.weight.dtype) == (torch.nn.Parameter, torch.bfloat16)


def test_a_4_bit_weight_keeps_its_state() -> None:
    """Scales, codebook, offset and the state of the scales are made too; attributes are carried over."""
    with torch.device("meta"):
        inner = SimpleNamespace(absmax=torch.empty(2), code=torch.empty(256))
        parts = {"absmax": torch.empty(4, dtype=torch.uint8), "code": torch.empty(16), "offset": torch.empty(())}
        model = torch.nn.Module()
        model.weight = packed({**parts, "state2": inner}, blocksize=64, quant_type="nf4", bnb_quantized=True)
    materialize(model, on_cpu)
    weight = model.weight
    assert (weight.blocksize, weight.quant_type, weight.bnb_quantized) == (64, "nf4", True)
    named = [(name, tuple(tensor.shape), tensor.device.type) for name, tensor in tensors(model)]
    shapes = [(8, 1), (4,), (16,), (), (2,), (256,)]
    assert named == [("weight", shape, "cpu") for shape in shapes]


def test_an_8_bit_weight_keeps_its_scales() -> None:
    """bitsandbytes reads the bytes as CB and the scales as SCB."""
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.empty(4, 4, dtype=torch.int8, device="meta"), requires_grad=False)
    model.weight.SCB = torch.empty(4, device="meta")
    materialize(model, on_cpu)
    assert model.weight.CB.data_ptr() == model.weight.data_ptr()
    assert [tuple(tensor.shape) for _, tensor in tensors(model)] == [(4, 4), (4,)]


def test_a_shared_part_of_a_state_is_made_once() -> None:
    """The codebook of all 4-bit weights is one tensor."""
    code = torch.empty(16, device="meta")
    model = torch.nn.ModuleList([torch.nn.Module(), torch.nn.Module()])
    for part in model:
        part.weight = packed({"absmax": torch.empty(4, device="meta"), "code": code})
    materialize(model, on_cpu)
    first, second = (part.weight.quant_state for part in model)
    assert first.code is second.code
    assert first.absmax is not second.absmax
