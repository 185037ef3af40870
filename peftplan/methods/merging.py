"""What peft's layers do when they are merged, as far as several do it alike: programs of the bench.

A layer whose `merge` plays peft's own is merged by the closed form. peft adds to a weight in place; asked to look
for NaNs (`safe_merge`), it adds to a copy that then takes the weight's place. A packed weight is unpacked, added to
and packed again.

Source: peft-merge.
"""

from __future__ import annotations

from collections.abc import Callable

from peftplan.errors import BadInput
from peftplan.specs.formats import QuantFormat
from peftplan.specs.modules import Ops
from peftplan.specs.tensors import Parameter, Tensor

Delta = Callable[[Ops], Tensor]

_FOREIGN = (
    "a merge into {} weights is not in the closed form (peft 0.21 itself has one for bitsandbytes, HQQ and torchao)"
)


def low_rank(t: Ops, a: Tensor, b: Tensor, shape: tuple[int, ...]) -> Tensor:
    """LoRA's delta weight, B @ A scaled, in the adapters' type; on the host 16-bit factors multiply in fp32."""
    wide_a, wide_b = t.widened(a), t.widened(b)
    out = t.mul_scalar(t.matmul(wide_b, wide_a, shape))
    return t.to(out, b.dtype)  # type: ignore[no-any-return]


def add_to_weight(t: Ops, weight: Parameter, delta: Delta, named: bool = False) -> None:
    """weight.data += delta; or the same in a copy that is looked through.

    `named`: a variable keeps the delta meanwhile, of which a cast to the weight's type is added.
    """
    refuse_packed_merge(weight, "")
    if not t.safe:
        t.add_in_place(weight, delta(t))
        return
    copy = t.clone(weight)
    if named:
        held = delta(t)
        copy = t.add_in_place(copy, t.to(held, weight.dtype))
    else:
        copy = t.add_in_place(copy, delta(t))
    t.check(copy)
    t.place(weight, copy)


def add_held(t: Ops, weight: Parameter, delta: Delta) -> None:
    """The same where a variable keeps the delta while the sum is looked through."""
    refuse_packed_merge(weight, "")
    copy = t.clone(weight) if t.safe else weight
    held = delta(t)
    copy = t.add_in_place(copy, held)
    if t.safe:
        t.check(copy)
        t.place(weight, copy)
    del held


def pack_with(t: Ops, weight: Parameter, dense: Tensor) -> None:
    """A packed weight is packed anew from what it became, which may be looked through first."""
    if t.safe:
        t.check(dense)
    t.pack_again(weight, dense)


def refuse_packed_merge(weight: Parameter, why: str) -> None:
    """A one-line refusal where peft cannot merge a layer into a packed weight."""
    if weight.quant is not None:
        raise BadInput(f"{why or _FOREIGN.format(weight.quant.kind)}; merge into 16 bits")


def refuse_foreign(weight: Parameter) -> None:
    """A one-line refusal of a weight that another quantiser than bitsandbytes packed."""
    if not isinstance(weight.quant, QuantFormat):
        refuse_packed_merge(weight, "")
