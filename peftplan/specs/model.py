"""A model as the tape plays it: what comes before the blocks, runs of identical blocks, what follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from peftplan.specs.behaviour import REFERENCE, Behaviour
from peftplan.specs.method import Initialisation
from peftplan.specs.modules import Module, Ops
from peftplan.specs.tensors import Parameter, Tensor


@dataclass(slots=True)
class BlockRun:
    """`count` consecutive blocks that are alike: one module stands for all of them.

    Where two kinds of blocks alternate, all runs of a kind share one module.
    """

    block: Module
    count: int
    first_index: int
    path: str  # where the list of blocks sits: "model.layers"
    # played by itself although its block stands in another run: the last of blocks whose gradients meet
    # in a tensor that all are given, which it creates and the others find
    apart: bool = False
    # what stands between the run before and this one: (t, hidden, given) -> (hidden, given)
    before: Callable[[Ops, Tensor, Any], tuple[Tensor, Any]] | None = None


@dataclass(slots=True)
class ModelSpec:
    """A model's modules and forward program.

    `stem` owns everything outside the repeated blocks, under the names the real model gives them.
    `enter(t, ids)` runs up to the first block and returns (hidden states, what every block is given
    beside them), which a block may replace by returning both; `leave(t, hidden)` runs from the last
    block to the input of the output head; `head` is the module that makes logits.
    `attention_targets` and `mlp_targets` answer `--targets attention` and `mlp`.
    """

    family: str
    stem: Module
    runs: list[BlockRun]
    enter: Callable[[Ops, Tensor], tuple[Tensor, Any]]
    leave: Callable[[Ops, Tensor], Tensor]
    head: Module
    head_path: str
    vocab_size: int
    max_seq_len: int | None
    attention_targets: tuple[str, ...]
    mlp_targets: tuple[str, ...]
    not_all_linear: tuple[str, ...] = ()  # linears that peft's all-linear skips in this family
    # linears of transformers 4 -> the parameter that holds their weights now, where peft converts targets
    former_linears: dict[str, str] = field(default_factory=dict)
    logits: Callable[[Ops, Tensor], Tensor] | None = None
    transform: Callable[[Ops, Tensor], Tensor] | None = None  # what the head does before its last linear
    scale_logits: Callable[[Ops, list[Tensor]], Tensor] | None = None  # what is done to the head's output
    attention_kinds: tuple[str, ...] = ("sdpa", "flash", "eager")  # what the real model supports
    encoder: bool = False
    inactive_params: int = 0  # weights of experts that a token does not visit
    notes: list[str] = field(default_factory=list)
    behaviour: Behaviour = REFERENCE  # of the libraries that run it
    # why a method does not run with gradient checkpointing, where it does not
    not_checkpointed: str = ""
    # what is saved of an adapter, where that is not what trains of it
    adapter_checkpoint_bytes: int | None = None
    # labels of a sequence that a method makes longer: (t, labels) -> labels
    relabel: Callable[[Ops, Tensor], Tensor] | None = None
    # what a method computes behind the loss: (t, loss) -> loss; over weights of all blocks, so that each is played
    behind_loss: Callable[[Ops, Tensor], Tensor] | None = None
    plays_each: bool = False
    # a loss that a method computes from the logits, and puts in the place of the model's own
    second_loss: Callable[[Ops, Tensor, Tensor], Tensor] | None = None
    # whether a batch names the task of each sequence
    names_tasks: bool = False
    initialisation: Initialisation | None = None  # what a method computes once before training
    virtual_tokens: bool = False  # a method puts keys and values before those of the tokens
    hands_positions: bool = True  # attention is handed the positions of the tokens
    # whether the model's forward keeps what it hands the first block in a variable of its own
    keeps_first_input: bool = True

    # how the family classifies whole sequences, where it is not by a score of each position: it changes the model
    # to have so many classes, and `scores` then makes them of the hidden states: [rows, classes]
    classify: Callable[[ModelSpec, int], None] | None = None
    scores: Callable[[Ops, Tensor], Tensor] | None = None
    # what a policy is held against: the model without adapters, or one that stands beside it
    reference: ModelSpec | None = None
    reference_stands: bool = False

    @property
    def num_layers(self) -> int:
        """Blocks in all runs."""
        return sum(run.count for run in self.runs)

    def groups(self) -> list[tuple[Module, int, str]]:
        """(module, how many times it stands in the model, dotted prefix of the first): stem first."""
        found: dict[int, tuple[Module, int, str]] = {}
        for run in self.runs:  # runs that alternate share a block
            block, count, prefix = run.block, run.count, f"{run.path}.{run.first_index}"
            if id(block) in found:
                _, before, prefix = found[id(block)]
                count += before
            found[id(block)] = (block, count, prefix)
        return [(self.stem, 1, ""), *found.values()]

    def _beside(self) -> list[tuple[Module, int, str]]:
        """The modules of a reference that stands beside the model."""
        if self.reference is None or not self.reference_stands:
            return []
        return [(module, count, f"reference.{prefix}") for module, count, prefix in self.reference.groups()]

    def parameters(self) -> list[tuple[str, Parameter, int]]:
        """Every distinct parameter and buffer: dotted name, parameter, how many times it stands in the model."""
        seen: set[int] = set()
        found = []
        for module, count, prefix in (*self.groups(), *self._beside()):
            for name, parameter in module.named_parameters(prefix):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    found.append((name, parameter, count))
        return found

    def num_params(self) -> int:
        """Weights of the base model, shared ones counted once, buffers not."""
        return sum(p.numel * n for _, p, n in self.parameters() if p.role == "weight")
