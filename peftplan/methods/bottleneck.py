"""Bottleneck adapters: a narrow network behind a sublayer, before its residual is added. peft has none of them.

Houlsby puts one behind attention and one behind the feed-forward of every block, Pfeiffer behind the latter
alone. What runs is out + up(act(down(out))), in the adapter's type, and cast back before the sum. The tests
hold it against the same module traced in torch. Source: houlsby, pfeiffer
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import finish, freeze
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor


class BottleneckOptions(Options):
    """The network."""

    bottleneck_size: Annotated[int, Field(ge=1, le=10**6, description="width of the narrow layer")] = 64
    activation: Annotated[Literal["relu", "gelu", "silu"], Field(description="its activation function")] = "relu"


class Bottleneck(Module):
    """A sublayer and the adapter behind it."""

    def __init__(self, base: Module, width: int, options: BottleneckOptions, dtype: DType) -> None:
        super().__init__()
        self.base_layer = base
        self.drops_weights = base.drops_weights
        self.activation = options.activation
        self.down = Linear(width, options.bottleneck_size, True, dtype)
        self.up = Linear(options.bottleneck_size, width, True, dtype)
        for _, parameter in (*self.down.named_parameters(), *self.up.named_parameters()):
            parameter.role = "adapter"

    def forward(self, t: Ops, x: Tensor, *args: Any) -> Tensor:
        out = t.call("base_layer", self.base_layer, x, *args)
        inner = t.call("down", self.down, t.to(out, self.down.weight.dtype))
        inner = t.activation(inner, self.activation)
        added = t.to(t.call("up", self.up, inner), out.dtype)
        return t.add(out, added)  # type: ignore[no-any-return]


def _apply(model: ModelSpec, method: MethodSpec, attention: bool) -> None:
    freeze(model, method)
    for block in {id(run.block): run.block for run in model.runs}.values():
        places = [_sublayer(model, block, model.mlp_targets)]
        if attention:
            places.insert(0, _sublayer(model, block, model.attention_targets))
        for name in places:
            base = block.children[name]
            width = [m for _, m in base.walk() if isinstance(m, Linear)][-1].out_features
            block.replace(name, Bottleneck(base, _width(model, width), method.options, method.adapter_dtype))
    finish(model, method)


def _sublayer(model: ModelSpec, block: Module, targets: tuple[str, ...]) -> str:
    """The child of a block whose linears these targets name."""
    lasts = [target.rpartition(".")[2] for target in targets[-1:]]  # none where experts are no linears
    found = [
        n for n, child in block.children.items() if any(p.rpartition(".")[2] in lasts for p, _ in child.walk() if p)
    ]
    if not found or model.encoder or model.family == "t5":
        raise BadInput(
            f"bottleneck adapters go behind attention and feed-forward, which {model.family} does not "
            f"keep in a module "
            "each; take --method lora"
        )
    return found[-1] if targets == model.mlp_targets else found[0]


def _width(model: ModelSpec, last: int) -> int:
    """Channels of the hidden states."""
    table = next((p for _, p, _ in model.parameters() if p.shape[:1] == (model.vocab_size,)), None)
    return table.shape[1] if table is not None and len(table.shape) == 2 else last


def apply_houlsby(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put an adapter behind attention and feed-forward."""
    _apply(model, method, attention=True)


def apply_pfeiffer(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put an adapter behind the feed-forward."""
    _apply(model, method, attention=False)


_AFTER = {
    "options": BottleneckOptions,
    "takes": ("modules_to_save", "adapter_dtype"),
    "merging": "not possible: an activation lies between",
    "merges": False,
    "inference": "two narrow products behind every adapted sublayer",
}
METHODS = (
    Method("houlsby", "a bottleneck behind attention and feed-forward", "houlsby", apply_houlsby, **_AFTER),  # type: ignore[arg-type]
    Method("pfeiffer", "a bottleneck behind the feed-forward", "pfeiffer", apply_pfeiffer, **_AFTER),  # type: ignore[arg-type]
)
