"""Variants of LoRA that differ in what they start from: their layers, and so a step, are LoRA's own.

Initialisations run once, before training, on one matrix at a time. Their programs play what peft 0.21 allocates
(tuners/lora/layer.py pissa_init, olora_init, lora_ga_init; utils/loftq_utils.py loftq_init; tuners/lora/corda.py
collect_eigens_for_layer; utils/incremental_pca.py), without what solvers take for themselves. What passes of the
model, forward for EVA and CorDA and backward too for LoRA-GA, hold meanwhile comes beside that.
Source: peft-lora, peft-init
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from peftplan.errors import BadInput
from peftplan.methods import lora
from peftplan.methods.lora import LoraLinear
from peftplan.methods.method import Method
from peftplan.specs.formats import FP32, FP64, UINT8
from peftplan.specs.method import Initialisation, MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Ops
from peftplan.specs.tensors import Parameter, Tensor

# Of peft's config classes: how often LoftQ packs, EVA's ranks before they are shared out, over the rank.
_LOFTQ_BLOCK = 64
_EVA_RHO = 2
_LOW_RANK_STEPS = 4
Targets = list[tuple[Linear, int]]
Program = Callable[[Linear, int, Ops, int], Any]  # (target, rank, tape, tokens of a batch)


def _scaled(t: Ops, factor: Tensor, root: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """A factor times the roots of singular values, put on a diagonal."""
    values = t.new((root[0],), root[0], FP32, "sqrt")
    scale = t.diagonal(root[0])
    del values
    return t.matmul(scale, factor, shape) if shape[0] == root[0] else t.matmul(factor, scale, shape)  # type: ignore[no-any-return]


def _take_off(t: Ops, wide: Tensor, a: Tensor, b: Tensor, weight: Parameter) -> Tensor:
    """wide - scale * b @ a, in the type of the weight that it replaces."""
    scaled = t.mul_scalar(b)
    product = t.matmul(scaled, a, wide.shape)
    del scaled
    left = t.sub(wide, product)
    del product, wide
    return t.to(left, weight.dtype)  # type: ignore[no-any-return]


def _pissa(base: Linear, rank: int, t: Ops, _: int) -> Any:
    (m, n), weight = (base.out_features, base.in_features), base.weight
    wide = t.to(weight, FP32)
    u, s, vh = t.svd(wide)
    a = _scaled(t, t.part(vh, (rank, n)), (rank, rank), (rank, n))
    b = _scaled(t, t.part(u, (m, rank)), (rank, rank), (m, rank))
    return _take_off(t, wide, a, b, weight), u, s, vh


def _olora(base: Linear, rank: int, t: Ops, _: int) -> Any:
    m, n = base.out_features, base.in_features
    wide = t.to(t.dense_weight(base), FP32)
    q, r = t.factors_qr(wide)
    a = t.new((rank, n), rank * n, FP32, "clone")  # the factors lie column by column
    b = t.new((m, rank), m * rank, FP32, "clone")
    scaled = t.mul_scalar(b)
    product = t.matmul(scaled, a, (m, n))
    del scaled
    wide = t.add_in_place(wide, product)
    del product
    return t.to(wide, base.weight.dtype), q, r, b


def _loftq(base: Linear, rank: int, t: Ops, _: int) -> Any:
    (m, n), k = (base.out_features, base.in_features), min(base.out_features, base.in_features)
    numel = m * n
    wide = t.to(base.weight, FP32)
    rest = t.new((m, n), numel, FP32, "clone")
    moved = t.new((m, n), numel, FP32, "_to_copy", 0)
    blocks = -(-numel // _LOFTQ_BLOCK)
    packed = t.new(((numel + 1) // 2, 1), (numel + 1) // 2, UINT8, "quantize_4bit", 4 * numel)
    scales = t.further((blocks,), blocks, FP32, "quantize_4bit")
    del moved
    unpacked = t.new((m, n), numel, FP32, "dequantize_4bit", numel // 2)
    rest = t.sub(wide, unpacked)
    u, s, vh = t.svd(rest)
    left = t.matmul(u, _root_of_diagonal(t, k, (k, rank)), (m, rank))
    right = t.matmul(_root_of_diagonal(t, k, (rank, k)), vh, (rank, n))
    return left, right, rest, s, packed, scales


def _root_of_diagonal(t: Ops, size: int, shape: tuple[int, int]) -> Tensor:
    square = t.diagonal(size)
    out = t.new(shape, shape[0] * shape[1], FP32, "sqrt")
    del square
    return out  # type: ignore[no-any-return]


def _lora_ga(base: Linear, rank: int, t: Ops, _: int) -> Any:
    (m, n), weight = (base.out_features, base.in_features), base.weight
    gradient = t.to(weight, FP32)  # of the weight's size and type, and held since the passes
    u, s, v = t.svd_lowrank(gradient, min(4 * rank, m, n), _LOW_RANK_STEPS)
    scale = t.diagonal(rank)
    b = t.matmul(t.part(u, (m, rank)), scale, (m, rank))
    del scale
    b = t.to(t.mul_scalar(b), weight.dtype)
    a = t.to(t.part(v, (rank, n)), weight.dtype)
    lies = t.new((rank, n), rank * n, weight.dtype, "clone")  # row by row, in the place of lora_A
    wide = t.to(weight, FP32)
    product = t.matmul(t.to(b, FP32), t.to(a, FP32), (m, n))
    product = t.mul_scalar(product)
    wide = t.sub(wide, product)
    return t.to(wide, weight.dtype), gradient, s, lies


def _corda(base: Linear, rank: int, t: Ops, _: int) -> Any:
    (m, n), k = (base.out_features, base.in_features), min(base.out_features, base.in_features)
    square = (n, n)
    wide = t.to(base.weight, FP32)
    damp = t.diagonal(n)
    fixed = t.new(square, n * n, FP32, "add", 8 * n * n)
    inverse = t.inverse(fixed)
    product = t.matmul(fixed, inverse, square)
    eye = t.eye(n, FP32)
    difference = t.sub(product, eye)
    del product, eye, difference
    wide = t.matmul(wide, fixed, (m, n))
    u, s, vh = t.svd(wide)
    return t.matmul(vh, inverse, (k, n)), u, s, damp


def _eva(base: Linear, rank: int, t: Ops, num_tokens: int) -> Any:
    n = base.in_features
    components = min(_EVA_RHO * rank, n, num_tokens)
    states = t.new((num_tokens, n), num_tokens * n, FP32, "_to_copy")
    batch = t.new((num_tokens, n), num_tokens * n, FP32, "clone")
    del states
    centred = t.new((num_tokens, n), num_tokens * n, FP64, "sub")
    del centred
    rows = components + num_tokens + 1
    means = t.new((3, n), 3 * n, FP64, "add"), t.new((n,), n, FP32, "mean")
    earlier = t.new((components, n), components * n, FP64, "mul")
    batch = t.new((rows, n), rows * n, FP64, "cat")
    del earlier
    return t.svd_lowrank(batch, min(2 * components, rows, n), _LOW_RANK_STEPS), means


def _prepared(
    name: str, reads: str, program: Program, held: Callable[[Targets, int], int], disk: str, packed: bool = False
) -> Callable[[ModelSpec, MethodSpec], None]:
    """LoRA, with what its initialisation takes; `packed`: it takes a base in 4 or 8 bits."""

    def apply(model: ModelSpec, method: MethodSpec) -> None:
        if method.quant is not None and not packed:
            raise BadInput(
                f"--method {name} computes its first values from dense weights, and --quant {method.quant.kind} "
                "packs them; leave --quant out, or take --method qlora"
            )
        lora.apply(model, method)
        targets = [
            (module.base_layer, count)
            for owner, count, _ in model.groups()
            for _, module in owner.walk()
            if isinstance(module, LoraLinear)
        ]
        shapes: dict[tuple[int, int], tuple[Linear, int]] = {}
        for linear, count in targets:
            shape = linear.out_features, linear.in_features
            shapes[shape] = linear, shapes.get(shape, (linear, 0))[1] + count
        model.initialisation = Initialisation(
            reads,
            tuple((partial(program, linear, method.rank), count) for linear, count in shapes.values()),
            held(targets, method.rank),
            _DISK[disk](model, targets, method.rank),
            disk,
        )

    return apply


def _nothing(targets: Targets, rank: int) -> int:
    return 0


def _components(targets: Targets, rank: int) -> int:
    """Directions in fp64, twice as many as are looked for, and two moments of every input channel."""
    return sum(count * linear.in_features * 8 * (2 * _EVA_RHO * rank + 2) for linear, count in targets)


def _covariances(targets: Targets, rank: int) -> int:
    return sum(4 * count * linear.in_features**2 for linear, count in targets)


def _gradients(targets: Targets, rank: int) -> int:
    return sum(count * linear.weight.numel * linear.weight.dtype.itemsize for linear, count in targets)


def _converted(model: ModelSpec, targets: Targets, rank: int) -> int:
    """The adapter as it starts, and the one of twice its rank that a saved adapter is converted to."""
    return sum(3 * 4 * count * rank * (linear.in_features + linear.out_features) for linear, count in targets)


def _base(model: ModelSpec, targets: Targets, rank: int) -> int:
    return sum(p.num_bytes() * count for _, p, count in model.parameters() if p.role == "weight")


_CONVERTED, _BASE, _NONE = (
    "the first adapter and one of twice the rank, for the unchanged base",
    "the changed base",
    "",
)
_DISK: dict[str, Callable[[ModelSpec, Targets, int], int]] = {
    _CONVERTED: _converted,
    _BASE: _base,
    _NONE: lambda model, targets, rank: 0,
}


def _variant(name: str, summary: str, apply: Callable[[ModelSpec, MethodSpec], None], *notes: str) -> Method:
    return replace(
        lora.METHOD,
        name=name,
        summary=summary,
        source=name,
        apply=apply,
        peft={"peft_type": "LORA", "init_lora_weights": name.replace("-", "_")},
        notes=notes,
    )


_CHANGES = "initialisation changes the base: keep the residual weights, or convert the adapter to twice its rank"
METHODS = (
    _variant(
        "pissa",
        "LoRA that starts from the leading singular vectors of the weights",
        _prepared("pissa", "weights", _pissa, _nothing, _CONVERTED),
        _CHANGES,
    ),
    _variant(
        "olora",
        "LoRA that starts from a QR decomposition of the weights",
        _prepared("olora", "weights", _olora, _nothing, _CONVERTED, packed=True),
        _CHANGES,
    ),
    _variant(
        "loftq",
        "LoRA that starts from what 4-bit packing loses",
        _prepared("loftq", "weights", _loftq, _nothing, _BASE),
        "initialisation leaves the base its type with values that 4 bits can hold: save it, and load that in "
        "4 bits to train as --method qlora",
    ),
    _variant(
        "eva",
        "LoRA that starts from the leading directions of the inputs",
        _prepared("eva", "inputs", _eva, _components, _NONE, packed=True),
        "initialisation runs batches forward (initialize_lora_eva_weights) until directions settle, then moves "
        "rank between targets, whose sum stays where rho is 1",
    ),
    _variant(
        "lora-ga",
        "LoRA that starts from the gradient of the first batches",
        _prepared("lora-ga", "gradients", _lora_ga, _gradients, _BASE),
        "initialisation runs batches forward and backward with the weights of all targets trained; it changes "
        "the base",
    ),
    _variant(
        "corda",
        "LoRA that starts from weights oriented by the inputs' covariance",
        _prepared("corda", "inputs", _corda, _covariances, _CONVERTED),
        _CHANGES,
        "initialisation runs batches forward for the covariances (half their bytes with "
        "use_float16_for_covariance), and holds whole singular vectors of all targets on the host until it is done",
    ),
)
