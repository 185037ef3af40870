"""VB-LoRA: LoRA whose factors are put together of vectors from one bank. Mirrors peft 0.21 tuners/vblora/layer.py.

Trained logits choose the best few vectors for each stretch of a factor and weigh them; the bank is the model's, and
all targets add to its gradient. What is gathered of it is kept for backward. Source: vblora
"""

from __future__ import annotations

from math import prod
from typing import Annotated

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, adapter_bytes
from peftplan.specs.formats import BOOL, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor


class VbloraOptions(Options):
    """The bank, and what is saved."""

    num_vectors: Annotated[int, Field(ge=1, le=10**6, description="vectors in the bank")] = 256
    vector_length: Annotated[
        int, Field(ge=1, le=10**6, description="length of each, a divisor of inputs and outputs of all targets")
    ] = 256
    topk: Annotated[int, Field(ge=1, le=10**6, description="vectors that are weighed for each stretch")] = 2
    save_only_topk_weights: Annotated[
        bool, Field(description="choices and weights are saved, not logits: small, and no start for more training")
    ] = False


class Bank(Module):
    """The vectors that all targets share."""

    def __init__(self, options: VbloraOptions, dtype: DType) -> None:
        super().__init__()
        self.vectors = adapter((options.num_vectors, options.vector_length), dtype)
        self.given: list[Tensor] = []  # while the model is entered


class VbloraLinear(Module):
    """base(x) + B A x, with A and B from the bank."""

    bank: Bank

    def __init__(self, base: Linear, bank: Bank, method: MethodSpec) -> None:
        super().__init__()
        options, dtype = method.options, method.adapter_dtype
        self.dropout, self.topk = method.dropout, options.topk
        self.base_layer = base
        object.__setattr__(self, "bank", bank)  # no child: the model's stem owns it
        count, length = options.num_vectors, options.vector_length
        self.vblora_logits_A = adapter((method.rank, base.in_features // length, count), dtype)
        self.vblora_logits_B = adapter((base.out_features // length, method.rank, count), dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype, base = x.dtype, self.base_layer
        result = t.call("base_layer", base, x)
        rank, count = self.vblora_logits_A.shape[0], self.vblora_logits_A.shape[2]
        first = t.new((count,), count, BOOL, "isinf")
        infinite = t.new((), 1, BOOL, "any", count)
        del first, infinite
        a = t.view(self._chosen(t, self.vblora_logits_A), (rank, base.in_features))
        b = t.contiguous(self._chosen(t, self.vblora_logits_B))
        b = t.view(b, (base.out_features, rank))
        x = t.to(x, self.bank.vectors.dtype)
        dropped = t.dropout(x, self.dropout)
        inner = t.linear(dropped, a)
        del dropped
        added = t.linear(inner, b)
        del inner
        result = t.add(result, added)
        del added
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def _chosen(self, t: Ops, logits: Tensor) -> Tensor:
        """[..., vectors] logits to [..., length]: the best vectors, weighed."""
        values, indices = t.topk(logits, self.topk)
        weights = t.softmax(values)
        vectors = self.bank.given[-1]
        found = t.rows(vectors, indices)
        weighed = t.mul(t.view(weights, (*weights.shape, 1)), found)
        del found
        out = t.sum_inner(weighed, (*logits.shape[:-1], vectors.shape[1]))
        del weighed
        return out  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base, put the bank beside the model and logits on the targets."""
    options = method.options
    if options.topk > options.num_vectors:
        raise BadInput(
            f"--method-option topk={options.topk} is more than the {options.num_vectors} vectors of the bank; "
            "give fewer, or a larger num_vectors"
        )
    bank = Bank(options, method.adapter_dtype)
    for linear in adapt(model, method, lambda base: VbloraLinear(base, bank, method)):
        if linear.in_features % options.vector_length or linear.out_features % options.vector_length:
            raise BadInput(
                f"--method-option vector_length={options.vector_length} does not divide a target's "
                f"{linear.in_features} inputs and {linear.out_features} outputs; give a divisor of those of all "
                "targets"
            )
    model.stem.add("vblora", bank)
    enter = model.enter

    def entered(t: Ops, ids: Tensor) -> tuple[Tensor, object]:
        bank.given[:] = [t.shared_weight(bank.vectors)]
        return enter(t, ids)

    model.enter = entered
    model.plays_each = True  # the bank's gradient comes with one block and stays
    if options.save_only_topk_weights:
        model.adapter_checkpoint_bytes = _chosen_bytes(model, bank, options)


def _chosen_bytes(model: ModelSpec, bank: Bank, options: VbloraOptions) -> int:
    """A saved adapter without logits: which vectors, in the fewest bytes, and all weights but one."""
    size = next(size for size, most in ((1, 2**8), (2, 2**15), (4, 2**31)) if options.num_vectors < most)
    total = adapter_bytes(model)
    for owner, times, _ in model.groups():
        for _, module in owner.walk():
            if isinstance(module, VbloraLinear):
                for logits in (module.vblora_logits_A, module.vblora_logits_B):
                    rows = prod(logits.shape[:-1])
                    kept = rows * (options.topk * size + (options.topk - 1) * logits.dtype.itemsize)
                    total += times * (kept - logits.num_bytes())
    return total


METHODS = (
    Method(
        "vblora",
        "LoRA whose factors are put together of vectors from one bank",
        "vblora",
        apply,
        default_rank=4,
        peft={"peft_type": "VBLORA"},
        options=VbloraOptions,
        takes=("rank", "dropout", "targets", "bias", "modules_to_save", "adapter_dtype"),
    ),
)
