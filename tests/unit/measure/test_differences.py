"""Two engines' tensors at the peak, paired off: what finds no partner is told."""

from __future__ import annotations

from peftplan.measure.trace.differences import differences

CLOSED = {
    "activations": {
        ("model.layers.*.mlp", "mul", "bf16", (4, 8)): [3, 192],
        ("model.norm", "mul", "bf16", (4, 8)): [1, 64],
        ("", "log_softmax", "fp32", (4, 10)): [1, 160],
    },
    "temporaries": {("lm_head", "mm", "bf16", (4, 8)): [1, 64]},
}


def test_alike_tensors_under_other_names_are_no_difference() -> None:
    """Wrappers of peft, prefixes of operations and the place of a kernel do not matter; sizes do."""
    traced = {
        "weights": {("model.layers.*.mlp.weight", "load", "bfloat16", (8, 8)): [3, 384]},
        "activations": {
            ("base_model.model.model.layers.*.mlp.base_layer", "aten::mul.Tensor", "bfloat16", (4, 8)): [3, 192],
            ("base_model.model.model.norm", "aten::mul.Tensor", "bfloat16", (1, 4, 8)): [1, 64],
            ("base_model.model", "aten::_log_softmax", "float32", (4, 10)): [1, 160],
        },
        "temporaries": {("MmBackward0", "aten::mm", "bfloat16", (4, 8)): [1, 64]},
    }
    assert differences(CLOSED, traced) == ()


def test_what_only_one_has_is_named_largest_first() -> None:
    """Part, module, operation, how many, and the bytes under the engine that has them."""
    traced = {
        "activations": {
            ("model.layers.*.mlp", "aten::mul.Tensor", "bfloat16", (4, 8)): [5, 320],
            ("model.norm", "aten::mul.Tensor", "bfloat16", (4, 8)): [1, 64],
        },
        "temporaries": {("lm_head", "aten::mm", "bfloat16", (4, 8)): [1, 64]},
    }
    found = differences(CLOSED, traced)
    assert [(one.module, one.operation, one.tensor, one.bytes) for one in found] == [
        ("", "log_softmax", "1 x fp32[4, 10]", (160, 0)),
        ("model.layers.*.mlp", "mul.Tensor", "2 x bfloat16[4, 8]", (0, 128)),
    ]
    assert len(differences(CLOSED, traced, most=1)) == 1


def test_another_part_of_the_peak_is_a_difference() -> None:
    """A tensor that one engine counts elsewhere is told on both sides: the terms differ by it."""
    traced = {"activations": CLOSED["activations"] | CLOSED["temporaries"], "temporaries": {}}
    assert sorted(one.bytes for one in differences(CLOSED, traced)) == [(0, 64), (64, 0)]
