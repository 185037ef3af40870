"""OSF: the small singular directions of every weight train, at right angles to the large ones.

Mirrors peft 0.21 tuners/osf.

Beside the weight, which stays, stand the factors of its small part twice: as they were, frozen, and as they are; a
pass adds the difference of both, as one product of twice the rank. Before a gradient is kept, hooks take away what
of it lies along the large directions. Source: osf; targets by family from peft 0.21 utils/constants.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.targets import matched
from peftplan.methods.wrapping import (
    adapter,
    buffer_dtype,
    finish,
    freeze,
    put_on,
    refuse_conv1d,
    refuse_packed,
)
from peftplan.specs.formats import FP32, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Parameter, Tensor, bytes_of

# Of the families that peft names; of any other, all linears are targets.
TARGETS: dict[str, tuple[str, ...]] = {
    "bloom": ("query_key_value", "dense_4h_to_h"),
    "gpt_neox": ("query_key_value", "dense_4h_to_h"),
    "falcon": ("query_key_value", "dense_4h_to_h"),
    "gpt2": ("c_attn", "c_proj"),
    "gpt_bigcode": ("c_attn", "c_proj"),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "gptj": ("q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"),
    **dict.fromkeys(
        ("llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi"),
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj"),
    ),
}


class OsfOptions(Options):
    """How many directions are kept."""

    effective_rank: Annotated[
        int | float | None,
        Field(gt=0, le=10**6, description="singular directions that stay, or a fraction of them; default one half"),
    ] = None
    rank_pattern: Annotated[
        tuple[str, ...] | None, Field(description="others for some targets: PATTERN:RANK with commas between")
    ] = None

    def patterns(self) -> dict[str, int | float]:
        """Ranks by pattern, as peft has them."""
        found: dict[str, int | float] = {}
        for given in self.rank_pattern or ():
            pattern, _, rank = given.rpartition(":")
            try:
                re.compile(pattern)
                found[pattern] = int(rank) if rank.strip().isdigit() else float(rank)
            except (ValueError, re.error):
                pattern = ""
            if not pattern or found[pattern] <= 0:
                raise BadInput(
                    f"--method-option rank_pattern: {given!r} is no PATTERN:RANK; give for example q_proj:512"
                )
        return found

    def peft_fields(self) -> dict[str, Any]:
        """peft has patterns as a dictionary."""
        patterns = {"rank_pattern": self.patterns()} if self.rank_pattern else {}
        return super().peft_fields() | patterns


class OsfLinear(Module):
    """base(x) + (U S V - U0 S0 V0) x."""

    def __init__(self, base: Linear, kept: int, dtype: DType, frozen: DType) -> None:
        super().__init__()
        self.base_layer = base
        self.hooked = not loses_hooks(base, dtype)
        outputs, inputs = base.out_features, base.in_features
        self.rank = rank = min(outputs, inputs) - kept
        self.U_low, self.S_low = adapter((outputs, rank), dtype), adapter((rank,), dtype)
        self.V_low = adapter((rank, inputs), dtype)
        if not self.hooked:  # a part of the joined factors' gradient, and kept as it is
            self.V_low.gradient_numel = 2 * self.V_low.numel
        self.U_init, self.S_init = (Parameter(x.shape, frozen, role="buffer") for x in (self.U_low, self.S_low))
        self.V_init = Parameter(self.V_low.shape, frozen, role="buffer")
        # where the small part's own complement does not tell them
        self.U_high = Parameter((outputs, kept), frozen, role="buffer") if outputs > inputs else None
        self.V_high = Parameter((kept, inputs), frozen, role="buffer") if inputs > outputs else None

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        dtype, (outputs, rank), inputs = x.dtype, self.U_low.shape, self.V_low.shape[1]
        result = t.call("base_layer", self.base_layer, x)
        scaled = t.mul(self._trained(t, "U", left=True), t.view(self.S_low, (1, rank)))
        before = t.neg(t.mul(self.U_init, t.view(self.S_init, (1, rank))))
        a = t.cat((scaled, before), (outputs, 2 * rank))
        del scaled, before
        b = t.cat((self._trained(t, "V", left=False), self.V_init), (2 * rank, inputs))
        x = t.to(x, a.dtype)
        inner = t.linear(x, b)
        added = t.linear(inner, a)
        return t.add(result, t.to(added, dtype))  # type: ignore[no-any-return]

    def _trained(self, t: Ops, name: str, left: bool) -> Tensor:
        """A factor whose gradient goes through a hook."""
        if not self.hooked:
            return self.parameters[f"{name}_low"]
        high = self.parameters.get(f"{name}_high")
        basis = self.parameters[f"{name}_init"] if high is None else high
        return t.hooked(self.parameters[f"{name}_low"], _along if high is None else _without, (basis, left))  # type: ignore[no-any-return]


def loses_hooks(base: Linear, dtype: DType) -> bool:
    """Whether peft casts the factors up after it has hooked them: it makes new ones, without hooks."""
    return dtype is FP32 and base.weight.dtype.itemsize == 2


def _along(t: Any, g: Tensor, saved: Any, context: tuple[Parameter, bool]) -> Sequence[Tensor]:
    """What of a gradient lies along a basis, which stands on its left or right."""
    basis, left = context
    size, flop = basis.shape[1 if left else 0], 2 * basis.numel * g.shape[1 if left else 0]
    inner = (size, g.shape[1]) if left else (g.shape[0], size)
    first = t.new(inner, inner[0] * inner[1], g.dtype, "mm", bytes_of(basis, g), flop)
    return (t.new(g.shape, g.numel, g.dtype, "mm", bytes_of(basis, first), flop),)


def _without(t: Any, g: Tensor, saved: Any, context: tuple[Parameter, bool]) -> Sequence[Tensor]:
    """A gradient without what lies along a basis."""
    (along,) = _along(t, g, saved, context)
    return (t.like(g, "sub", bytes_of(g, along)),)


def _kept(options: OsfOptions, name: str, smaller: int) -> int:
    """How many of a target's singular directions stay."""
    given = options.effective_rank
    for pattern, rank in options.patterns().items():
        if re.search(pattern, name):
            given = rank
            break
    if given is None:
        return smaller // 2
    return min(smaller, int(smaller * given) if isinstance(given, float) and given <= 1 else int(given))


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put the factors of its small part beside every target."""
    refuse_packed(method, "osf")
    options = method.options
    for pattern in options.patterns():
        if any(character.isdigit() for character in pattern):
            raise BadInput(
                f"--method-option rank_pattern: {pattern!r} may tell blocks apart, which the closed form does not "
                "take; give names of modules, or take --engine trace"
            )
    freeze(model, method)
    targets = method.targets
    if isinstance(targets, str) and targets.strip().lower() == "all-linear":
        targets = TARGETS.get(model.family, targets)
    found = matched(model, targets)
    names = {id(module): name for _, name, module in found}
    linears = [module for _, _, module in found if isinstance(module, Linear)]
    refuse_conv1d(linears, "osf")
    frozen = buffer_dtype(method, linears)

    def wrap(base: Linear) -> Module:
        smaller = min(base.out_features, base.in_features)
        kept = _kept(options, names[id(base)], smaller)
        if not 0 < kept < smaller:
            raise BadInput(
                f"--method osf would keep {kept} of the {smaller} singular directions of {names[id(base)]}; give "
                "--method-option effective_rank between 1 and one less, or a fraction"
            )
        return OsfLinear(base, kept, method.adapter_dtype, frozen)

    put_on(model, method, found, wrap)
    if any(loses_hooks(linear, method.adapter_dtype) for linear in linears):
        model.notes.append(
            "peft 0.21 casts the factors beside a 16-bit base to fp32 after it has put hooks on them, and loses "
            "the hooks: gradients stay as they are; with --adapter-dtype bf16, or a base in fp32, they are not lost"
        )
    finish(model, method)


METHODS = (
    Method(
        "osf",
        "the small singular directions of every weight train, at right angles to the large ones",
        "osf",
        apply,
        peft={"peft_type": "OSF"},
        options=OsfOptions,
        takes=("targets", "modules_to_save", "adapter_dtype"),
        merging="into the weights, for good: peft does not unmerge it",
    ),
)
