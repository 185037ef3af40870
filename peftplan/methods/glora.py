"""GLoRA: weights and biases scaled and moved, each by its own path of few numbers.

Mirrors peft 0.21 tuners/glora/layer.py.

On every pass the adapted weight W + W * A + B is made whole, beside the frozen one, and its product with the input
beside the frozen one's. A path that is turned off is a buffer of zeros as large as what it would change.
Source: glora
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, refuse_conv1d, refuse_packed
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


# Options keep the letters of peft's names.
class GloraOptions(Options):
    """The paths."""

    config_A_B: Annotated[  # noqa: N815
        Literal["lora", "vector", "constant", "none"],
        Field(description="what scales the weight, and is added to it"),
    ] = "lora"
    config_C: Annotated[  # noqa: N815
        Literal["lora", "vector", "none"], Field(description="what the weight adds to the bias, where there is one")
    ] = "lora"
    config_D_E: Annotated[  # noqa: N815
        Literal["vector", "constant", "none"],
        Field(description="what scales the bias, and is added to it, where there is one"),
    ] = "constant"


class Path(Module):
    """One of the five: two factors, a vector, a number, or zeros."""

    def __init__(self, kind: str, shape: tuple[int, ...], rank: int, dtype: DType, base_dtype: DType) -> None:
        super().__init__()
        self.kind, self.shape = kind, shape
        if kind == "lora":
            self.Xd = adapter((shape[0], rank), dtype)
            self.Xu = adapter((rank, shape[1]), dtype)
        elif kind == "none":
            self.zeros = Parameter(shape, base_dtype, role="buffer")
        else:
            column = (shape[0], 1) if len(shape) == 2 else shape
            self.X = adapter((1,) if kind == "constant" else column, dtype)

    def made(self, t: Ops) -> Tensor:
        """What the path comes to, on this pass."""
        if self.kind == "lora":
            return t.matmul(self.Xd, self.Xu, self.shape)  # type: ignore[no-any-return]
        if self.kind == "none":
            return self.zeros
        return t.slice(self.X, ()) if self.kind == "constant" else self.X


class GloraLinear(Module):
    """base(x) + adapted(x) - base(x)."""

    def __init__(self, base: Linear, rank: int, options: GloraOptions, dtype: DType) -> None:
        super().__init__()
        self.base_layer = base
        biased, base_dtype = base.bias is not None, base.weight.dtype
        whole, bias = (base.out_features, base.in_features), (base.out_features,)
        of_bias = options.config_D_E if biased else "none"
        kinds = {
            "A": (options.config_A_B, whole),
            "B": (options.config_A_B, whole),
            "C": (options.config_C if biased else "none", (base.in_features, 1)),
            "D": (of_bias, bias),
            "E": (of_bias, bias),
        }
        self.paths = [Path(kind, shape, rank, dtype, base_dtype) for kind, shape in kinds.values()]
        for name, path in zip(kinds, self.paths):
            self.add(f"glora_{name}", path)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        base, weight = self.base_layer, self.base_layer.weight
        frozen = t.call("base_layer", base, x)
        a, b, c, d, e = (t.to(path.made(t), weight.dtype) for path in self.paths)
        adapted = t.add(t.add(weight, t.mul(weight, a)), b)
        moved = None
        if base.bias is not None:
            moved = t.add(t.add(base.bias, t.mul(base.bias, d)), e)
            moved = t.add(moved, t.view(t.matmul(weight, c, (weight.shape[0], 1)), base.bias.shape))
        out = t.linear(x, adapted, moved)
        result = t.add(frozen, out)
        result = t.sub(result, t.mul_scalar(frozen))
        return t.to(result, frozen.dtype)  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put the paths on every target."""
    refuse_packed(method, "glora")
    adapted = adapt(
        model, method, lambda base: GloraLinear(base, method.rank, method.options, method.adapter_dtype)
    )
    refuse_conv1d(adapted, "glora")
    if not any(parameter.edge is not None for _, parameter, _ in model.parameters()):
        raise BadInput(
            "--method glora with --method-option config_A_B=none trains nothing on these targets, whose biases it "
            "leaves or which have none; give config_A_B=vector"
        )


METHODS = (
    Method(
        "glora",
        "weights and biases scaled and moved, each by a path of few numbers",
        "glora",
        apply,
        default_rank=8,
        peft={"peft_type": "GLORA"},
        options=GloraOptions,
        takes=("rank", "targets", "bias", "modules_to_save", "adapter_dtype"),
        merging="into weights and biases",
    ),
)
