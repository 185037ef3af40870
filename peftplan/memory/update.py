"""An optimizer step's allocations and frees in their true order, for every trained tensor of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from peftplan.memory.graph import Record
from peftplan.memory.tape import Engine
from peftplan.memory.trained import Trained, by_type, in_groups, own, trained_tensors
from peftplan.memory.workspaces.reductions import foreach_norm_sizes
from peftplan.optimizers.chosen import chosen
from peftplan.optimizers.row import Optimizer, Step, Weight
from peftplan.specs.formats import UINT8, allocated_bytes
from peftplan.specs.model import BlockRun, ModelSpec
from peftplan.specs.modules import Embedding, Module
from peftplan.specs.run import StepSpec
from peftplan.specs.tensors import Parameter, Tensor

# (key of a tensor, its size in rounded bytes; negative where it is freed)
Event = tuple[int, int]


class Script:
    """Events being written down; `keys` are new ones."""

    def __init__(self, keys: Iterator[int]) -> None:
        self.keys = keys
        self.events: list[Event] = []

    def new(self, sizes: Iterable[int]) -> list[Event]:
        """Allocate tensors of these bytes, empty ones left out."""
        made = [(next(self.keys), allocated_bytes(size)) for size in sizes if size]
        self.events += made
        return made

    def free(self, made: Iterable[Event]) -> None:
        """Free tensors, given by their births."""
        self.events += [(key, -size) for key, size in made]


def standing_parameters(model: ModelSpec) -> Iterator[tuple[list[Parameter], BlockRun | None]]:
    """Parameters and buffers in the order of the model: those of a run stand there for each of its blocks."""
    met: set[int] = set()

    def own(module: Module) -> list[Parameter]:
        parameters = [p for p in module.parameters.values() if id(p) not in met]
        met.update(id(p) for p in parameters)
        return parameters

    stem = [module for _, module in model.stem.walk()]
    lists = [f"{run.path}." for run in model.runs]
    around = [module for path, module in model.stem.walk() if any(name.startswith(f"{path}.") for name in lists)]
    first = [module for module in stem if isinstance(module, Embedding)]
    yield [p for module in (*around, *first) for p in own(module)], None
    for run in model.runs:
        met.difference_update(id(p) for _, p in run.block.named_parameters())  # runs that alternate share a block
        yield [p for _, module in run.block.walk() for p in own(module)], run
    yield [p for module in stem for p in own(module)], None
    if model.reference is not None and model.reference_stands:
        yield from standing_parameters(model.reference)


class Update:
    """What an optimizer step does. Gradients and masters come in the order of the trained tensors."""

    def __init__(self, model: ModelSpec, step: StepSpec) -> None:
        self.optimizer = chosen(step)
        rows = {id(row.parameter): row for row in trained_tensors(model, step)}
        trained = [
            rows[id(parameter)]
            for parameters, run in standing_parameters(model)
            for _ in range(run.count if run else 1)
            for parameter in parameters
            if id(parameter) in rows
        ]
        self.masters = [4 * row.parameter.numel for row in trained] if step.master_weights else []
        self.types = by_type([row for row in trained if self.optimizer.keeps_gradient(row.weight)])
        self.clips = step.trainer and bool(self.types)
        self.groups = in_groups(trained, self.optimizer)
        self.met = [row for rule in self.optimizer.rules for row in self._rows_of(rule)]

    def write(self, script: Script, gradients: Sequence[Event | None], first: bool) -> list[Event]:
        """One step, the `first` with the states that it makes; the gradients that are left are returned.

        Nothing is left to do where tensors were updated during backward, which made their states too.
        """
        if self.clips:
            self._clip(script)
        if self.masters:
            wide: list[Event | None] = []
            for size, narrow in zip(self.masters, gradients):
                if narrow is not None:
                    wide += script.new([size])
                    script.free([narrow])
            gradients = wide
        states = self._states() if first else None
        for rule in () if self.optimizer.in_backward else self.optimizer.rules:
            self._step(script, rule, states)
        return [made for made in gradients if made is not None]

    def _rows_of(self, rule: Optimizer) -> list[Trained]:
        return [row for group in self.groups for row in own(group, self.optimizer, rule)]

    def _states(self) -> Iterator[list[int]]:
        """The states of each tensor, with those of the first that needs them the tables that all share."""
        shared = False
        for row in self.met:
            tables = () if shared else self.optimizer.tables(row.weight)
            shared = bool(shared or tables)
            yield [*tables, *(size for _, size in self.optimizer.states(row.weight))]

    def _step(self, script: Script, rule: Optimizer, states: Iterator[list[int]] | None) -> None:
        groups = [own(group, self.optimizer, rule) for group in self.groups]
        if rule.step is not None:
            self._loop(script, rule.step, groups, states)
            return
        held: list[list[Event]] = [[] for _ in rule.copies]
        for group in groups:
            if states is not None:
                script.new(size for _ in group for size in next(states))
            for rows in [group] if rule.one_list else by_type(group):
                self._copy(script, rows, held)
            if not rule.one_list:
                script.free(made for copies in held for made in copies)
                held = [[] for _ in rule.copies]
        script.free(made for copies in held for made in copies)

    @staticmethod
    def _copy(script: Script, rows: list[Trained], held: list[list[Event]]) -> None:
        """Copies of all these tensors, each set in the place of that of the turn before. Source: torch-adamw."""
        for number, before in enumerate(held):
            held[number] = script.new(row.weight.num_bytes for row in rows)
            script.free(before)

    def _loop(
        self, script: Script, program: Step, groups: list[list[Trained]], states: Iterator[list[int]] | None
    ) -> None:
        """What the optimizer's own program does as it goes from tensor to tensor; it makes states on its way."""
        t = Engine()
        kept: list[Tensor] = []

        def met(group: list[Trained]) -> Iterator[Weight]:
            for row in group:
                if states is not None:
                    kept.extend(t.new((size,), size, UINT8, "state") for size in next(states))
                yield row.weight

        program(t, (met(group) for group in groups if group), self.optimizer.options, True)
        keys = [next(script.keys) for _ in t.records]
        script.events += [(keys[number], size) for _, number, size in moments(t.records)]
        kept.clear()

    def _clip(self, script: Script) -> None:
        """A norm for each gradient from partial sums of those of one type, then the norms joined, and their norm.

        Source: torch-foreach.
        """
        norms: list[Event] = []
        for rows in self.types:
            norms += script.new(row.parameter.dtype.itemsize for row in rows)
            script.free(script.new(foreach_norm_sizes(len(rows), max(row.parameter.numel for row in rows))))
        width = max((row.parameter.dtype.itemsize for rows in self.types for row in rows), default=0)
        script.free(script.new([len(norms) * width, width]) + norms)


def moments(records: Sequence[Record]) -> list[tuple[int, int, int]]:
    """Births and deaths in their order: the clock, the number of a record, and its size, negative at its end."""
    clocks = [(record.born, number, record.size) for number, record in enumerate(records) if record.size]
    clocks += [
        (record.died, number, -record.size) for number, record in enumerate(records) if record.size and record.died
    ]
    clocks.sort()
    return clocks
