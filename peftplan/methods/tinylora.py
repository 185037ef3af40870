"""TinyLoRA: between frozen singular vectors of the weight, a matrix spanned by a handful of trained numbers.

Mirrors peft 0.21 tuners/tinylora.

The matrix is summed on every pass from frozen random ones, each times one trained number; a share of the targets,
or all of them, may have these numbers in common. Source: tinylora
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.methods.merging import add_held
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, adapter_bytes, buffer_dtype, factoring_note, refuse_packed
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


class TinyloraOptions(Options):
    """The trained numbers, and who shares them."""

    u: Annotated[int, Field(ge=1, le=10**6, description="trained numbers of a group of targets")] = 64
    weight_tying: Annotated[
        float, Field(ge=0, le=1, description="share of targets without numbers of their own: 1 leaves one group")
    ] = 0.0
    projection_seed: Annotated[int | None, Field(ge=0, description="seed of the random matrices; no bytes")] = None
    save_projection: Annotated[bool, Field(description="the random matrices are saved with the adapter")] = True


class Vectors(Module):
    """The trained numbers of every group, where targets share them."""

    def __init__(self, groups: int, count: int, dtype: DType) -> None:
        super().__init__()
        self.of_group: list[Parameter] = []
        for number in range(groups):
            vector = adapter((count,), dtype)
            setattr(self, str(number), vector)
            self.of_group.append(vector)
        self.given: list[Tensor] = []  # while the model is entered
        self.places: dict[tuple[int, int], int] = {}  # by block and layer


class TinyloraLinear(Module):
    """base(x) + B (sum_i v_i P_i) A x."""

    kept_by_model = ("tinylora_v",)
    shared: Vectors | None = None

    def __init__(self, base: Linear, method: MethodSpec, own: bool) -> None:
        super().__init__()
        count, kept = method.options.u, buffer_dtype(method, [base])
        self.dropout, self.dtype = method.dropout, method.adapter_dtype
        self.rank = rank = min(method.rank, base.in_features, base.out_features)
        self.base_layer = base
        if own:
            self.tinylora_v = adapter((count,), self.dtype)
        self.tinylora_A = Parameter((rank, base.in_features), kept, role="buffer")
        self.tinylora_B = Parameter((base.out_features, rank), kept, role="buffer")
        self.tinylora_P = Parameter((count, rank, rank), kept, role="buffer")

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype = x.dtype
        result = t.call("base_layer", self.base_layer, x)
        matrix = self._matrix(t)
        dropped = t.to(t.dropout(x, self.dropout), self.tinylora_A.dtype)
        h = t.linear(dropped, self.tinylora_A)
        h = t.linear(h, matrix)
        delta = t.linear(h, self.tinylora_B)
        result = t.add(result, delta)
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Add the product of all three."""
        add_held(t, self.base_layer.weight, self._delta_weight)

    def _delta_weight(self, t: Ops) -> Tensor:
        a, b, shared = self.tinylora_A, self.tinylora_B, self.shared
        middle = t.to(self._spanned(t, shared.of_group[0] if shared else self.tinylora_v), a.dtype)
        wide_a, wide_b, middle = t.widened(a), t.widened(b), t.widened(middle)
        out = t.matmul(t.matmul(wide_b, middle, b.shape), wide_a, self.base_layer.weight.shape)
        return t.to(out, a.dtype)  # type: ignore[no-any-return]

    def _matrix(self, t: Ops) -> Tensor:
        shared = self.shared
        if shared is None:
            return self._spanned(t, self.tinylora_v)
        cast = t.autocast_to(shared.given[shared.places[t.layer, id(self)]], t.autocast)
        return self._spanned(t, t.seen(cast, (1, 1, cast.numel)))

    def _spanned(self, t: Ops, vector: Tensor) -> Tensor:
        bases = t.to(self.tinylora_P, self.dtype)
        spanned = t.einsum(vector, bases, (1, 1, self.rank**2))
        return t.view(spanned, (self.rank, self.rank))  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base, factor every target and put trained numbers between the factors."""
    refuse_packed(method, "tinylora")
    own = not method.options.weight_tying
    adapted = adapt(model, method, lambda base: TinyloraLinear(base, method, own))
    if not own and adapted:
        _share(model, method)
    saved = adapter_bytes(model)
    for name, matrix, count in model.parameters():
        if "tinylora_" in name and matrix.role == "buffer":
            saved += count * matrix.num_bytes() * (method.options.save_projection or "tinylora_P" not in name)
    model.adapter_checkpoint_bytes = saved
    factoring_note(model, adapted)


def _share(model: ModelSpec, method: MethodSpec) -> None:
    """Numbers that groups of targets, in the order of the model, have in common."""
    order: list[tuple[int, TinyloraLinear]] = []
    layer = 0
    for run in model.runs:
        for _ in range(run.count):
            order += [(layer, module) for _, module in run.block.walk() if isinstance(module, TinyloraLinear)]
            layer += 1
    order += [(-1, module) for _, module in model.stem.walk() if isinstance(module, TinyloraLinear)]
    groups = max(1, round(len(order) * (1.0 - method.options.weight_tying)))
    size = max(1, len(order) // groups)
    vectors = Vectors(groups, method.options.u, method.adapter_dtype)
    for number, (place, module) in enumerate(order):
        vectors.places[place, id(module)] = min(number // size, groups - 1)
        object.__setattr__(module, "shared", vectors)  # no child: the model's stem owns it
    model.stem.add("tinylora_v", vectors)
    enter = model.enter

    def entered(t: Ops, ids: Tensor) -> tuple[Tensor, object]:
        vectors.given[:] = [t.shared_weight(vector) for vector in vectors.of_group]
        return enter(t, ids)

    model.enter = entered
    model.plays_each = True  # a group's gradient comes with one block and stays


METHODS = (
    Method(
        "tinylora",
        "a handful of trained numbers between frozen singular vectors of the weights",
        "tinylora",
        apply,
        default_rank=2,
        peft={"peft_type": "TINYLORA"},
        options=TinyloraOptions,
        takes=("rank", "dropout", "targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
