"""BEFT: trained biases added to the values' projections. Mirrors peft 0.21 tuners/beft/layer.py.

Source: beft; targets by family from peft 0.21 utils/constants.py.
"""

from __future__ import annotations

from peftplan.errors import BadInput
from peftplan.methods.method import Method
from peftplan.methods.targets import matched
from peftplan.methods.wrapping import adapter, finish, freeze, put_on, refuse_conv1d
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor

_V_PROJ = ("opt", "gptj", "llama", "mistral", "mixtral", "phi", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3")
TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_V_PROJ, ("v_proj",)),
    "t5": ("v",),
    "roberta": ("value",),
    "bert": ("value",),
    "deberta-v2": ("value_proj",),
}


class BeftLinear(Module):
    """base(x) + bias."""

    def __init__(self, base: Linear, dtype: DType) -> None:
        super().__init__()
        self.base_layer = base
        self.beft_bias = adapter((1, base.out_features), dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        bias = t.view(self.beft_bias, (self.beft_bias.numel,))
        result = t.call("base_layer", self.base_layer, x)
        return t.to(t.add(result, bias), result.dtype)  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and add a bias to every target: the values' projections, unless others are named."""
    freeze(model, method)
    targets = method.targets
    if isinstance(targets, str) and targets.strip().lower() == "all-linear":
        if model.family not in TARGETS:
            raise BadInput(
                f"--method beft: peft 0.21 has no targets for {model.family}; give --targets with the name of the "
                "projection that makes the values"
            )
        targets = TARGETS[model.family]
    adapted = put_on(model, method, matched(model, targets), lambda base: BeftLinear(base, method.adapter_dtype))
    refuse_conv1d(adapted, "beft")
    finish(model, method)


METHODS = (
    Method(
        "beft",
        "trained biases added to the projections of the values",
        "beft",
        apply,
        peft={"peft_type": "BEFT"},
        takes=("targets", "modules_to_save", "adapter_dtype"),
        merging="into the bias, where a target has one; else not possible",
    ),
)
