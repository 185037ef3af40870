"""(IA)3: a vector that scales keys, values and the feed-forward's input.

Mirrors peft 0.21 tuners/ia3/layer.py, bnb.py.

Source: ia3; targets by family from peft 0.21 utils/constants.py.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.merging import refuse_packed_merge
from peftplan.methods.method import Method, Options
from peftplan.methods.quantize import Linear4bit
from peftplan.methods.targets import matched
from peftplan.methods.wrapping import adapter, finish, freeze
from peftplan.specs.formats import FP32, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor

# By family: targets, the feed-forward ones last.
TARGETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "t5": (("k", "v"), ("wo",)),
    "gpt2": (("c_attn",), ("mlp.c_proj",)),
    "bloom": (("query_key_value",), ("mlp.dense_4h_to_h",)),
    "roberta": (("key", "value"), ("output.dense",)),
    "opt": (("q_proj", "k_proj"), ("fc2",)),
    "gptj": (("q_proj", "v_proj"), ("fc_out",)),
    "gpt_neox": (("query_key_value",), ("dense_4h_to_h",)),
    "gpt_bigcode": (("c_attn",), ("mlp.c_proj",)),
    "llama": (("k_proj", "v_proj"), ("down_proj",)),
    "mistral": (("k_proj", "v_proj"), ("down_proj",)),
    "bert": (("key", "value"), ("output.dense",)),
    "deberta-v2": (("key_proj", "value_proj"), ("output.dense",)),
    "falcon": (("query_key_value",), ("dense_4h_to_h",)),
    "phi": (("q_proj", "v_proj"), ("fc2",)),
    "gemma": (("q_proj", "v_proj"), ("down_proj",)),
    "gemma2": (("q_proj", "v_proj"), ("down_proj",)),
    "gemma3_text": (("q_proj", "v_proj"), ("down_proj",)),
    "qwen2": (("q_proj", "v_proj"), ("down_proj",)),
    "qwen3": (("q_proj", "v_proj"), ("down_proj",)),
}


class Ia3Options(Options):
    """Which targets are scaled at their input."""

    feedforward_modules: Annotated[
        tuple[str, ...] | None,
        Field(description="targets that are scaled at their input, not their output; default by family"),
    ] = None


class Ia3Linear(Module):
    """A dense linear and the vector that scales its output, or its input."""

    def __init__(self, base: Linear, at_input: bool, dtype: DType) -> None:
        super().__init__()
        self.base_layer = base
        self.at_input = at_input
        self.ia3_l = adapter((1, base.in_features) if at_input else (base.out_features, 1), dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype = x.dtype
        scale = t.mul_scalar(t.view(self.ia3_l, (self.ia3_l.numel,)))
        if self.at_input:
            x = t.to(x, self.ia3_l.dtype)
            inner = t.to(t.mul(x, scale), dtype)
            result = t.call("base_layer", self.base_layer, inner)
        else:
            result = t.call("base_layer", self.base_layer, x)
            narrow = result.dtype
            result = t.to(t.mul(result, scale), narrow)
        return result  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Scale the columns of the weight, or its rows and the bias."""
        weight, bias = self.base_layer.weight, self.base_layer.bias
        refuse_packed_merge(weight, "peft 0.21 does not merge ia3 into packed weights")
        of_bias = bias if not self.at_input else None
        if t.safe:
            scaled = t.mul(weight, self.ia3_l)
            t.check(scaled)
            if of_bias is not None:
                scaled_bias = t.mul(of_bias, t.view(self.ia3_l, of_bias.shape))
                t.check(scaled_bias)
            t.place(weight, t.to(scaled, weight.dtype))
            if of_bias is not None:
                t.place(of_bias, t.to(scaled_bias, of_bias.dtype))
            return
        t.place(weight, t.to(t.mul(weight, self.ia3_l), weight.dtype))
        if of_bias is not None:
            t.place(of_bias, t.to(t.mul(of_bias, t.view(self.ia3_l, of_bias.shape)), of_bias.dtype))


class Ia3Packed(Ia3Linear):
    """Beside a packed linear: without autocast all of it in fp32; a 4-bit base's result is cloned."""

    def __init__(self, base: Linear4bit, at_input: bool, dtype: DType) -> None:
        super().__init__(base, at_input, dtype)
        self.clones = base.four_bit

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        scale = t.mul_scalar(t.view(self.ia3_l, (self.ia3_l.numel,)))
        converts = t.autocast is None and x.dtype is not FP32
        if converts:
            x = t.to(x, FP32)
        if self.at_input:
            result = t.call("base_layer", self.base_layer, t.mul(x, scale))
            expected = result.dtype
        else:
            result = t.call("base_layer", self.base_layer, x)
            expected = result.dtype
            result = t.mul(result, scale)
        if self.clones:
            result = t.clone(result)
        return t.to(result, expected) if converts else result  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put vectors on keys, values and the feed-forward."""
    freeze(model, method)
    family = TARGETS.get(model.family)
    asked = method.targets
    own = isinstance(asked, str) and asked.strip().lower() == "all-linear"
    inputs = method.options.feedforward_modules
    if (own or inputs is None) and family is None:
        raise BadInput(
            f"--method ia3: peft 0.21 has no targets for {model.family}; give --targets "
            f"k_proj,v_proj,down_proj and "
            "--method-option feedforward_modules=down_proj, by the model's own names"
        )
    if inputs is None:
        inputs = family[1]  # type: ignore[index]
    targets = (*family[0], *family[1]) if own and family is not None else asked
    for owner, name, module in matched(model, targets, written=asked if not own else targets):
        if not isinstance(module, Linear):
            raise BadInput(f"--targets names {name}, an embedding, which the closed form of ia3 does not take")
        layer = Ia3Packed if isinstance(module, Linear4bit) else Ia3Linear
        owner.replace(name, layer(module, name.endswith(tuple(inputs)), method.adapter_dtype))  # type: ignore[arg-type]
    finish(model, method)


METHODS = (
    Method(
        "ia3",
        "a trained vector scales keys, values and the feed-forward's input",
        "ia3",
        apply,
        peft={"peft_type": "IA3"},
        options=Ia3Options,
        takes=("targets", "modules_to_save", "adapter_dtype"),
    ),
)
