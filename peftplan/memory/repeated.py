"""Many steps of few kinds: what steps share that differ in batch and length only is worked out once.

A kind of step is a model as its method has made it, and how the step is run but for its batch and length. The
first step of a kind is played as any other; from the second on programs are kept (`symbolic_play`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, Generic, TypeVar

from peftplan.memory.account import Account, standing
from peftplan.memory.extrapolated import Extrapolated, StandingEvents
from peftplan.memory.load import Loading, load_bytes
from peftplan.memory.reserved import Replay
from peftplan.memory.resident import Resident
from peftplan.memory.step import held_by_the_loss, leaves_a_loss, play_evaluation, play_step
from peftplan.memory.symbolic_play import NO_EXPRESSION, OpenEvaluation, OpenStep
from peftplan.memory.symbolic_program import NotAlike
from peftplan.memory.timeline import Timeline
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec

# Kinds, and programs of one kind, that are kept; a step that none of its kind's programs answers is played.
MOST_KINDS = 64
MOST_PROGRAMS = 32
# Programs that are made before the first of them has to have answered for a further step, and steps that are played
# before one more is tried: short sequences answer many questions otherwise than long ones, which may come later.
FIRST_PROGRAMS = 4
PLAYED_BETWEEN = 8

Opened = TypeVar("Opened", OpenStep, OpenEvaluation)


def shapeless(step: StepSpec) -> StepSpec:
    """What steps of one kind have in common: all but batch and length."""
    return replace(step, micro_batch=0, seq_len=0)


class _Programs(Generic[Opened]):
    """Programs of one kind of step, the one that answered last in front."""

    def __init__(self) -> None:
        self.known: list[Opened] = []
        self.num_answered = self.num_failed = self.num_played = 0

    def answer(self, read: Callable[[Opened], Any]) -> Any:
        """What the first program finds that is made for the step; None without one."""
        for number, program in enumerate(self.known):
            try:
                found = read(program)
            except NotAlike:
                continue
            if number:  # neighbours mostly answer alike
                self.known.insert(0, self.known.pop(number))
            self.num_answered += 1
            return found
        return None

    @property
    def pays(self) -> bool:
        """Whether one more may be made: programs are used again, and there are not too many."""
        made = len(self.known) + self.num_failed
        if made >= MOST_PROGRAMS:
            return False
        return made < FIRST_PROGRAMS or made < self.num_answered or self.num_played >= PLAYED_BETWEEN


class Kind:
    """Steps of one kind: their model, and programs that answer for some batches and lengths each."""

    def __init__(self, model: ModelSpec, num_params: int) -> None:
        self.model, self.num_params = model, num_params
        self._resident: Resident | None = None
        self._load: Loading | None = None
        self._standing: StandingEvents | None = None
        self._steps: dict[StepSpec, _Programs[OpenStep]] = {}
        self._evaluations: dict[StepSpec, _Programs[OpenEvaluation]] = {}

    def resident(self, step: StepSpec) -> Resident:
        """The state of the model, which has been played."""
        if self._resident is None:
            self._resident = standing(self.model, step)
        return self._resident

    def load(self, step: StepSpec) -> Loading:
        """What loading the model needs."""
        if self._load is None:
            self._load = load_bytes(self.model, self.resident(step))
        return self._load

    def replay(self, step: StepSpec, account: Account, every_block: bool) -> Replay | Extrapolated:
        """What is reserved: of every block, or extrapolated from those that are played."""
        if every_block:
            return Replay(self.model, step, account)
        if self._standing is None:
            self._standing = StandingEvents(self.model, step)
        return Extrapolated(self._standing, step, account)

    def step(self, step: StepSpec) -> Timeline:
        """As `play_step`."""
        left = 0
        if leaves_a_loss(step):
            left = held_by_the_loss(self.model, self.step(replace(step, accumulating=False)))
        found: Timeline = self._found(
            self._steps,
            step,
            lambda program: program.read(step, left),
            lambda: OpenStep(self.model, step, left),
            lambda: play_step(self.model, step),
        )
        return found

    def evaluation(self, step: StepSpec) -> int:
        """As `play_evaluation`."""
        found: int = self._found(
            self._evaluations,
            step,
            lambda program: program.read(step),
            lambda: OpenEvaluation(self.model, step),
            lambda: play_evaluation(self.model, step),
        )
        return found

    def _found(
        self,
        programs: dict[StepSpec, _Programs[Opened]],
        step: StepSpec,
        read: Callable[[Opened], Any],
        open_one: Callable[[], Opened],
        play: Callable[[], Any],
    ) -> Any:
        shared = shapeless(step)
        if shared not in programs:  # the first of its kind: perhaps the only one
            programs[shared] = _Programs()
            return play()
        of_kind = programs[shared]
        found = of_kind.answer(read)
        if found is None and of_kind.pays:
            of_kind.num_played = 0
            try:
                program = open_one()
                found = read(program)
            except NO_EXPRESSION:
                of_kind.num_failed += 1
            else:
                of_kind.known.insert(0, program)
        if found is not None:
            return found
        of_kind.num_played += 1
        return play()


class Plays:
    """Kinds of steps, the last used ones kept.

    `every_block`: what is reserved comes of a replay of every block, as it does of a single run; else it is
    extrapolated from the blocks that are played, which is some fifty times faster.
    """

    def __init__(self, every_block: bool = False) -> None:
        self.every_block = every_block
        self._kinds: OrderedDict[Hashable, Kind] = OrderedDict()

    def kind(self, key: Hashable, make: Callable[[], Kind]) -> Kind:
        """The kind that `key` stands for, which the caller makes when it is first met."""
        found = self._kinds.get(key)
        if found is None:
            found = self._kinds[key] = make()
            while len(self._kinds) > MOST_KINDS:
                self._kinds.popitem(last=False)
        else:
            self._kinds.move_to_end(key)
        return found
