"""What an optimizer is to the rest of peftplan: a name, facts, and what it keeps and does for a trained tensor.

States are listed tensor by tensor, because the allocator rounds each of them. What a step does beside them is
either a set of copies over all tensors at once (foreach) or a program that goes from tensor to tensor, written in
the vocabulary of the tape: memory reads its allocations, time its launches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from peftplan.specs.formats import DType
from peftplan.specs.modules import Ops

Shape = tuple[int, ...]
# What each state is, and its bytes.
States = list[tuple[str, int]]


class Weight(NamedTuple):
    """A trained tensor as an optimizer meets it; `dtype` is that of what is updated."""

    shape: Shape
    dtype: DType
    name: str = ""  # dotted, as the real model has it, without peft's prefix
    kind: str = "linear"  # of the module that holds it: linear, head, embedding, other
    wide: bool = False  # an embedding of Trainer's, whose 8-bit states bitsandbytes keeps in 32 bits

    @property
    def numel(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor, and of its gradient."""
        return self.numel * self.dtype.itemsize

    @property
    def narrow(self) -> bool:
        """Whether it is kept in 16 bits."""
        return self.dtype.itemsize < 4


class OptimizerOptions(BaseModel):
    """Options of one optimizer alone, under its library's names; this one has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Foreach(NamedTuple):
    """One operation over all tensors of a type: tensors that it reads and writes of each, and passes to the kernel.

    A tensor that is passed twice is read once. `scalars`: a number for each tensor is passed too.
    """

    op: str
    lists: int
    read: int
    written: int
    scalars: bool = False
    decay: bool = False  # runs only where weights decay


# Groups of trained tensors, as the optimizer was given them.
Groups = Iterable[Iterable[Weight]]
# A step: (tape, groups, options, whether what is renewed from time to time is renewed in it).
Step = Callable[[Ops, Groups, Any, bool], None]


def _nothing(weight: Weight, options: Any) -> States:
    return []


def _takes_all(weight: Weight, options: Any) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One optimizer: `states` gives what it keeps for a trainable tensor on the device.

    `paged` is kept in managed memory (not in torch's allocator, at worst all on the device), `host` in the host's;
    `tables` are tensors that all states share, made with the first that needs them.
    Tensors that it does not take are updated by `beside`, another optimizer.
    What a step launches is one of three: `foreach` operations over all tensors of a type, the program `step`, or,
    with neither, one kernel a tensor that reads and writes its weight and all of its states.
    """

    name: str
    summary: str
    source: str
    states: Callable[[Weight, Any], States] = _nothing
    aliases: tuple[str, ...] = ()  # other names: Trainer's --optim among them
    options: type[OptimizerOptions] = OptimizerOptions
    paged: Callable[[Weight, Any], States] = _nothing
    host: Callable[[Weight, Any], States] = _nothing
    tables: Callable[[Weight, Any], tuple[int, ...]] = lambda weight, options: ()
    # sets of copies, each as large as the tensors, that a foreach step makes one after the other and holds
    copies: tuple[str, ...] = ()
    one_list: bool = False  # tensors of all types are one list, whose copies stay until the next group's
    foreach: tuple[Foreach, ...] = ()
    step: Step | None = None
    every: bool = False  # the program holds something of all tensors at once, so that each of them counts
    takes: Callable[[Weight, Any], bool] = _takes_all
    beside: Optimizer | None = None
    # which of its own groups a tensor is in, where it does not take the loop's
    group: Callable[[Weight, Any], int] | None = None
    # tensors are updated during backward, each when its gradient is there; `late`: when the next one is
    in_backward: bool = False
    late: bool = False
    scales_loss: bool = False
    # bytes that go to the host and come back in each step, for a tensor
    transfers: Callable[[Weight, Any], tuple[int, int]] = lambda weight, options: (0, 0)
    # whether a gradient stays on the device until the step, or leaves it as it comes
    keeps_gradient: Callable[[Weight, Any], bool] = _takes_all
    # options that a model's config gives, and those that Trainer sets otherwise than the library
    of_config: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}
    of_trainer: Mapping[str, Any] | None = None
    # why it cannot train these tensors, in one line with the remedy; empty where it can
    refuses: Callable[[Sequence[Weight], Any], str] = lambda weights, options: ""
    takes_masters: bool = True  # False: it is made of the model's own weights, and sees no masters of them
    whole_model: bool = False  # made for the whole model: it keeps states of frozen weights too
    notes: tuple[str, ...] = ()


def moments(*names: str) -> Callable[[Weight, Any], States]:
    """States as large as the tensor, in its type."""
    return lambda weight, options: [(name, weight.num_bytes) for name in names]
