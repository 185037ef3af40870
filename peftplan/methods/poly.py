"""Poly: LoRA mixed of skills, by weights that are drawn for each sequence's task.

Mirrors peft 0.21 tuners/poly.

On every pass a router draws weights for the batch (a relaxed Bernoulli variable of each skill), and mixes A and B
for each sequence; the mixed factors are kept, and copies of all skills where they are cast. Source: poly
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftplan.errors import BadInput
from peftplan.methods.method import Method, Options
from peftplan.methods.wrapping import adapt, adapter, refuse_conv1d
from peftplan.specs.formats import FP32, INT64
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.modules import Linear, Module, Ops
from peftplan.specs.tensors import Tensor


class PolyOptions(Options):
    """Tasks and skills."""

    n_tasks: Annotated[int, Field(ge=1, le=10**5, description="tasks, each with weights of its own")] = 1
    n_skills: Annotated[int, Field(ge=1, le=10**4, description="skills that are mixed")] = 4
    n_splits: Annotated[int, Field(ge=1, le=10**4, description="parts of the input, each mixed by itself")] = 1


class PolyLinear(Module):
    """base(x) + B A x, mixed for each sequence."""

    def __init__(self, base: Linear, method: MethodSpec) -> None:
        super().__init__()
        options, rank, dtype = method.options, method.rank, method.adapter_dtype
        self.rank, self.splits, self.skills = rank, options.n_splits, options.n_skills
        self.base_layer = base
        inputs, outputs = base.in_features // self.splits, base.out_features // self.splits
        self.poly_lora_A = adapter((self.splits, self.skills, inputs, rank), dtype)
        self.poly_lora_B = adapter((self.splits, self.skills, rank, outputs), dtype)
        self.module_logits = adapter((options.n_tasks, self.splits * self.skills), dtype)

    def forward(self, t: Ops, x: Tensor) -> Tensor:
        base, dtype = self.base_layer, x.dtype
        if len(x.shape) != 3:
            raise BadInput(
                "--method poly mixes factors for each sequence, and a target here is given all tokens as one "
                "matrix; leave it out, as with --targets attention"
            )
        batch, length = x.shape[0], x.shape[1]
        result = t.call("base_layer", base, x)
        weights = self._weights(t, batch)
        a = self._mixed(t, weights, self.poly_lora_A, (batch, base.in_features, self.rank))
        b = self._mixed(t, weights, self.poly_lora_B, (batch, self.rank, base.out_features))
        x = t.to(x, a.dtype)
        added = t.matmul(t.matmul(x, a, (batch, length, self.rank)), b, (batch, length, base.out_features))
        added = t.mul_scalar(added, "div")
        result = t.add_in_place(result, added)
        del added
        return t.to(result, dtype)  # type: ignore[no-any-return]

    def _mixed(self, t: Ops, weights: Tensor, skills: Tensor, shape: tuple[int, ...]) -> Tensor:
        """All skills' factors by each sequence's weights: [splits, batch, factor], seen sequence by sequence."""
        batch, size = shape[0], skills.numel // (self.splits * self.skills)
        left = t.view(weights, (self.splits, batch, self.skills))
        right = t.seen(skills, (self.splits, self.skills, size))
        out = t.einsum(left, right, (self.splits, batch, size))
        seen = t.view(out, shape)
        return t.contiguous(seen) if self.splits > 1 else seen  # type: ignore[no-any-return]

    def _weights(self, t: Ops, batch: int) -> Tensor:
        """What the router draws for the tasks of a batch."""
        tasks = Tensor((batch,), batch, INT64, None, None)
        shape = (batch, self.splits, self.skills)
        logits = t.index(self.module_logits, (tasks,), (batch, self.splits * self.skills))
        drawn = t.sigmoid(self._relaxed(t, t.view(logits, shape)))
        drawn = t.clamp(drawn)
        total = t.add_scalar(t.sum_last(drawn))
        return t.div(drawn, t.view(total, (batch, self.splits, 1)))  # type: ignore[no-any-return]

    @staticmethod
    def _relaxed(t: Ops, logits: Tensor) -> Tensor:
        """The logit of a relaxed Bernoulli variable, at temperature one."""
        chances = t.clamp(t.sigmoid(logits))
        with t.no_grad():
            noise = t.clamp(t.like(logits, "rand", 0))
            first = _logarithm(t, noise, "log")
            second = _logarithm(t, t.neg(noise), "log1p")
            total = t.sub(first, second)
            del first, second
        total = t.add(total, _logarithm(t, chances, "log"))
        rest = _logarithm(t, t.neg(chances), "log1p")
        total = t.sub(total, rest)
        del rest
        return t.mul_scalar(total, "div")  # type: ignore[no-any-return]


def _logarithm(t: Ops, x: Tensor, op: str) -> Tensor:
    """log or log1p (autocast: in fp32)."""
    return t.logarithm(x if t.autocast is None else t.to(x, FP32), op)  # type: ignore[no-any-return]


def apply(model: ModelSpec, method: MethodSpec) -> None:
    """Freeze the base and put skills and routers on the targets."""
    adapted = adapt(model, method, lambda base: PolyLinear(base, method))
    refuse_conv1d(adapted, "poly")
    splits = method.options.n_splits
    for linear in adapted:
        if linear.in_features % splits or linear.out_features % splits:
            raise BadInput(
                f"--method-option n_splits={splits} does not divide a target's {linear.in_features} inputs and "
                f"{linear.out_features} outputs; give a divisor of those of all targets"
            )
    model.names_tasks = True
    model.not_checkpointed = (
        "--method poly does not work with gradient checkpointing: peft 0.21 names the tasks for one pass, and "
        "blocks that run again are told none; add --no-checkpointing"
    )


METHODS = (
    Method(
        "poly",
        "LoRA mixed of skills, by weights drawn for each sequence's task",
        "poly",
        apply,
        default_rank=8,
        peft={"peft_type": "POLY"},
        options=PolyOptions,
        takes=("rank", "targets", "modules_to_save", "adapter_dtype"),
        merging="not possible: what is added depends on the task",
        merges=False,
        inference="two products beside every target, and its mixing for each sequence",
    ),
)
