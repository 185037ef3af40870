"""MiSS (once Bone): sums over groups of the input, times one trained matrix.

Mirrors peft 0.21 tuners/miss/layer.py.

Source: miss
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.merging import refuse_foreign
from peftplan.methods.method import Method, Options
from peftplan.methods.quantize import Linear4bit
from peftplan.methods.wrapping import adapt, adapter, refuse_conv1d
from peftplan.specs.formats import DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor


class MissOptions(Options):
    """The forms of the method."""

    init_weights: Annotated[
        Literal["bat", "mini"] | None,
        Field(description="bat: square blocks multiply the weight itself; mini: a narrower matrix"),
    ] = None
    mini_r: Annotated[
        int | None,
        Field(ge=1, le=10**6, description="outputs that a narrower matrix has, repeated over all: `mini`"),
    ] = None

    def peft_fields(self) -> dict[str, Any]:
        """peft has the forms as initialisations."""
        return super().peft_fields() | ({"init_weights": self.form} if self.form else {})

    @property
    def form(self) -> str | None:
        """The form of the method, None for the plain one."""
        return self.init_weights or ("mini" if self.mini_r else None)


class MissLinear(Module):
    """base(x) + sum_over_groups(dropout(x)) @ block."""

    def __init__(self, base: Linear, method: MethodSpec, dtype: DType) -> None:
        super().__init__()
        self.dropout, self.rank = method.dropout, method.rank
        self.base_layer = base
        self.mini = (method.options.mini_r or 1) if method.options.form == "mini" else None
        self.miss_block = adapter((self.mini or base.out_features, method.rank), dtype)  # peft's is its transpose

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        base, dtype = self.base_layer, x.dtype
        result = t.call("base_layer", base, x)
        if isinstance(base, Linear4bit) and base.four_bit:
            result = t.clone(result)
        block: Tensor = self.miss_block
        if self.mini:
            block = t.repeated(block, (base.out_features, self.rank))
        width = base.in_features + -base.in_features % self.rank
        if width != base.in_features:
            x = t.pad_last(x, width)
        x = t.to(x, self.miss_block.dtype)
        sums = t.sum_groups(t.dropout(x, self.dropout), (*x.shape[:-1], self.rank))
        added = t.linear(sums, block)
        del sums
        result = t.add(result, added)
        del added
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def merge(self, t: Ops) -> None:
        """Add the matrix to every group of the weight's inputs."""
        weight = self.base_layer.weight
        refuse_foreign(self.base_layer.weight)
        dense = t.dense_weight(self.base_layer)
        if t.safe:
            dense = t.clone(dense)
        dtype = dense.dtype
        total = self._with_block(t, dense)
        in_place = total is dense and not t.safe
        del dense
        if t.safe:
            t.check(total)
        narrow = t.to(total, dtype)
        if weight.quant is not None:
            t.pack_again(weight, narrow)
        elif not in_place:
            t.place(weight, narrow)

    def _with_block(self, t: Ops, dense: Tensor) -> Tensor:
        """The sum; where the groups leave a rest it is written into the weight itself."""
        block: Tensor = t.widened(self.miss_block)
        outputs, inputs = dense.shape
        if self.mini:
            block = t.repeated(block, (outputs, self.rank))
        rest = inputs % self.rank
        if not rest:
            scaled = t.mul_scalar(block)
            total = t.add(dense, t.expand(scaled, dense.shape))
            del scaled
            return t.to(total, self.miss_block.dtype) if t.narrow_on_host(self.miss_block) else total  # type: ignore[no-any-return]
        for width in (inputs - rest, rest):
            part = t.part(dense, (outputs, width))
            total = t.add(part, t.expand(t.mul_scalar(block), part.shape))
            t.write("copy_", dense.dtype, total.numel * total.dtype.itemsize, part.numel * dense.dtype.itemsize)
            del total
        return dense


class BatLinear(Module):
    """(W + W_blocks @ blocks + blocks) x: the weight is copied, multiplied and summed on every pass.

    The product of two tensors of four dimensions copies both, the second spread over all columns of blocks.
    """

    applied_often = True  # the blocks are multiplied by, and added

    def __init__(self, base: Linear, method: MethodSpec) -> None:
        super().__init__()
        self.rank = rank = method.rank
        self.base_layer = base
        self.miss_block = adapter((base.out_features // rank, rank, rank), method.adapter_dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype, base = x.dtype, self.base_layer
        copied = t.clone(t.dense_weight(base))
        delta = self._delta(t, copied)
        weight = t.add(copied, delta)
        del copied
        x = t.to(x, weight.dtype)
        bias = None if base.bias is None else t.to(base.bias, weight.dtype)
        result = t.linear(x, weight, bias)
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def _delta(self, t: Ops, weight: Tensor) -> Tensor:
        rank, block = self.rank, self.miss_block
        rows, columns = (size // rank for size in weight.shape)
        wide = t.to(weight, block.dtype)
        narrow = block if t.autocast is None else t.autocast_to(block, t.autocast)
        held = t.to_detached(wide, narrow.dtype)
        left = t.contiguous(held)
        right = t.expand_copy(narrow, (columns, rows, rank, rank))
        product = t.matmul(left, t.view(right, (columns * rows, rank, rank)), (columns * rows, rank, rank))
        del narrow, held, left, right
        summed = t.add(t.regrouped(product, (columns, rows, rank, rank)), t.seen(block, block.shape))
        del product
        return t.view(t.contiguous(summed), weight.shape)  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put a matrix over groups of the input on every target."""
    options = method.options
    narrow = (options.mini_r or 1) if options.form == "mini" else None

    def wrap(base: Linear) -> Module:
        return BatLinear(base, method) if options.form == "bat" else MissLinear(base, method, method.adapter_dtype)

    adapted = adapt(model, method, wrap)
    refuse_conv1d(adapted, "miss")
    for linear in adapted:
        if options.form == "bat" and (linear.in_features % method.rank or linear.out_features % method.rank):
            raise BadInput(
                f"--rank {method.rank} with --method-option init_weights=bat divides weights into square blocks, "
                f"and one has {linear.in_features} inputs and {linear.out_features} outputs; give a divisor of both"
            )
        if method.rank > linear.in_features:
            raise BadInput(
                f"--rank {method.rank} with --method miss: a target has {linear.in_features} inputs, "
                f"and peft takes "
                f"no more groups than that; give --rank {linear.in_features} or less"
            )
        if narrow and linear.out_features % narrow:
            raise BadInput(
                f"--method-option mini_r={narrow} does not divide the {linear.out_features} outputs of a target; "
                "give a divisor of all targets' outputs"
            )


METHODS = (
    Method(
        "miss",
        "sums over groups of the input, times one trained matrix (once called Bone)",
        "miss",
        apply,
        default_rank=64,
        peft={"peft_type": "MISS"},
        options=MissOptions,
        takes=("rank", "dropout", "targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
