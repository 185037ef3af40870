"""A deep model's recording from a shallow one's: the events of blocks alike, repeated where the blocks would run.

A recording is cut into chunks, each of one block or of what lies outside the blocks. Wherever the blocks
run one after another - loading, forward, backward, the optimizer step - more of those that are alike are put
in. A chunk ends storages of its own block, of a neighbour, or of none; in a repeated chunk a neighbour's
storage is that of the neighbour there. What does not follow this pattern is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from peftplan.measure.trace.recording import FORWARD, STEP, Mark, Recording

_NEUTRAL = re.compile(r"|.*::.*|\w*Backward\d*")  # nodes of autograd, which say nothing of the module

# A neighbour's storage, and one that a node of autograd makes for the block before it.
_NEAR = 2


class NotRegularError(Exception):
    """A recording whose blocks do not follow one another as they must to be repeated."""


@dataclass(slots=True)
class _Chunk:
    """Events of one block, or of none, and the number of the first in the recording."""

    block: int | None
    begin: int
    events: list[int] = field(default_factory=list)


class Repeater:
    """A recording of a model with `depth` blocks in the list at `path`, ready to have more put in."""

    def __init__(self, recording: Recording, path: str, depth: int, first: int, period: int) -> None:
        self.source, self.depth, self.first, self.period = recording, depth, first, period
        self.beyond = first + period  # the first block after those that are repeated
        names = [self._block_of(text, path) for text in recording.texts]
        self.named = [names[number] for number in recording.modules]
        self.owners: list[int | None] = [None] * len(recording.sizes)  # the block that made each storage
        self.chunks = list(self._cut())
        self.passes = list(self._passes())
        # of each storage that a block made: its pass and block, and its number in that chunk
        self.born: dict[int, tuple[int, int, int]] = {}
        self.made: dict[tuple[int, int], list[int]] = {}
        for index, run in enumerate(self.passes):
            for chunk in run:
                if chunk.block is not None:
                    self._note_births(index, chunk)

    def repeated(self, times: int, growth: dict[int, int] | None = None) -> Recording:
        """The recording of a model with `times` periods more; `growth` has bytes a period by storage."""
        return _Writer(self, times, growth or {}).write()

    def repeats(self, block: int | None) -> bool:
        """Whether a block is one of those that are repeated."""
        return block is not None and self.first <= block < self.beyond

    def _block_of(self, text: str, path: str) -> int | str:
        """The block that a module's name lies in; else `none`, or `neutral` if that may be anywhere."""
        at = text.find(f"{path}.")
        if at == 0 or (at > 0 and text[at - 1] == "."):
            number = text[at + len(path) + 1 :].partition(".")[0]
            return int(number) if number.isdigit() else "neutral"
        bare = text.removeprefix("base_model.model").removeprefix(".")
        if _NEUTRAL.fullmatch(text) or not bare or f"{path}.".startswith(f"{bare}."):
            return "neutral"
        return "none"

    def _cut(self) -> Iterator[_Chunk]:
        """Chunks in order; frees that follow one another outside the blocks are put in the order of blocks."""
        at_mark = {mark.event for mark in self.source.marks}
        phases = {mark.event: mark.name for mark in self.source.marks if mark.name in (FORWARD, STEP)}
        current: int | None = None
        chunk = _Chunk(None, 0)
        loose: list[int] = []  # frees that no block does, not yet in order
        passing = False  # whether the blocks run: an optimizer goes through their tensors without them
        for index, code in enumerate(self.source.events):
            if loose and (code > 0 or index in at_mark):
                yield chunk
                yield from self._in_order(loose, index - len(loose), current)
                chunk, loose = _Chunk(None, index), []
            if index in phases:
                current, passing = None, phases[index] == FORWARD
            if code > 0:
                named = self.named[code - 1]
                current = current if named == "neutral" else named if isinstance(named, int) else None
                self.owners[code - 1] = current
            elif current is None or not passing:
                loose.append(code)
                continue
            if chunk.block != current or index in at_mark:
                yield chunk
                chunk = _Chunk(current, index)
            chunk.events.append(code)
        yield chunk
        yield from self._in_order(loose, len(self.source.events) - len(loose), None)

    def _in_order(self, codes: list[int], begin: int, current: int | None) -> Iterator[_Chunk]:
        """Frees by the blocks that made them; those of the block at work and its neighbours are its own doing."""
        owners = {self.owners[-code - 1] for code in codes}
        if current is not None and all(owner is None or abs(owner - current) <= 1 for owner in owners):
            yield _Chunk(current, begin, codes)
            return

        def place(code: int) -> int:
            owner = self.owners[-code - 1]
            return -1 if owner is None else owner

        chunk = _Chunk(None, begin)
        for index, code in enumerate(sorted(codes, key=lambda code: (place(code), -code)), begin):
            block = place(code) if place(code) >= 0 else None
            if block != chunk.block:
                yield chunk
                chunk = _Chunk(block, index)
            chunk.events.append(code)
        yield chunk

    def _passes(self) -> Iterator[list[_Chunk]]:
        """Chunks of blocks that follow one another, upwards or downwards; others alone."""
        run: list[_Chunk] = []
        for chunk in self.chunks:
            if not chunk.events:
                continue
            if run and not self._continues(run, chunk):
                yield run
                run = []
            if run and run[-1].block == chunk.block:
                run[-1].events += chunk.events
            else:
                run.append(chunk)
        if run:
            yield run

    def _continues(self, run: list[_Chunk], chunk: _Chunk) -> bool:
        last = run[-1].block
        if last is None or chunk.block is None:
            return False
        if abs(chunk.block - last) != 1:
            return chunk.block == last
        return len(run) < 2 or chunk.block - last == last - (run[-2].block or 0)

    def _note_births(self, index: int, chunk: _Chunk) -> None:
        assert chunk.block is not None
        born = [code - 1 for code in chunk.events if code > 0 and self.named[code - 1] != "none"]
        self.made[index, chunk.block] = born
        for ordinal, number in enumerate(born):
            self.born[number] = (index, chunk.block, ordinal)


class _Writer:
    """Writes the longer recording."""

    def __init__(self, repeater: Repeater, times: int, growth: dict[int, int]) -> None:
        self.of, self.times, self.growth = repeater, times, growth
        self.source = repeater.source
        self.out = Recording(
            texts=list(self.source.texts), all_shapes=list(self.source.all_shapes), facts=dict(self.source.facts)
        )
        self.numbers: dict[tuple[int, int], int] = {}  # (storage, copy) -> its number here
        self.begins: dict[int, int] = {}  # event there -> event here
        self.texts = {text: number for number, text in enumerate(self.out.texts)}

    def write(self) -> Recording:
        for run in self.of.passes:
            self._write_pass(run)
        self.begins[len(self.source.events)] = len(self.out.events)
        for mark in self.source.marks:
            if mark.event not in self.begins:
                raise NotRegularError(f"{mark.name} lies within repeated blocks")
            self.out.marks.append(Mark(mark.name, mark.step, self.begins[mark.event]))
        return self.out

    def _write_pass(self, run: list[_Chunk]) -> None:
        of = self.of
        inside = [
            i for i, chunk in enumerate(run) if chunk.block is not None and of.first <= chunk.block < of.beyond
        ]
        if not inside:
            for chunk in run:
                self._write_chunk(chunk, 0)
            return
        begin, end = inside[0], inside[-1] + 1
        if end - begin != of.period or begin == 0 or end == len(run):
            raise NotRegularError("only some of the repeated blocks run there")
        for chunk in run[:begin]:
            self._write_chunk(chunk, 0)
        upwards = (run[end].block or 0) > (run[begin].block or 0)
        for copy in range(self.times + 1) if upwards else range(self.times, -1, -1):
            for chunk in run[begin:end]:
                self._write_chunk(chunk, copy)
        for chunk in run[end:]:
            self._write_chunk(chunk, 0)

    def _write_chunk(self, chunk: _Chunk, copy: int) -> None:
        block = chunk.block
        fixed = not self.of.repeats(block)
        for index, code in enumerate(chunk.events, chunk.begin):
            if fixed:
                self.begins[index] = len(self.out.events)
            if code > 0:
                self._write_birth(code - 1, block, copy)
            else:
                number = self._target(-code - 1, block, copy)
                if number is None:
                    raise NotRegularError("a storage ends before it began")
                self.out.events.append(-(number + 1))

    def _position(self, block: int, copy: int) -> int:
        """Where a block of the shallow model stands in the deep one."""
        of = self.of
        if block < of.first:
            return block
        return block + (copy if block < of.beyond else self.times) * of.period

    def _origin(self, position: int) -> tuple[int, int]:
        """The block of the shallow model, and the copy, that stand at a place of the deep one."""
        of = self.of
        if position < of.first:
            return position, 0
        behind = position - of.first
        if behind < (self.times + 1) * of.period:
            return of.first + behind % of.period, behind // of.period
        return position - self.times * of.period, 0

    def _target(self, number: int, block: int | None, copy: int) -> int | None:
        """Which storage a chunk means that ends `number`: its own, a neighbour's, or one outside the blocks."""
        of = self.of
        found = of.born.get(number)
        if found is None:
            return self.numbers.pop((number, 0), None)
        index, owner, ordinal = found
        if block is None or abs(owner - block) > max(of.period, _NEAR):
            if of.repeats(owner):
                raise NotRegularError("a repeated block's storage ends far from it")
            return self.numbers.pop((number, 0), None)
        there, there_copy = self._origin(self._position(block, copy) + owner - block)
        alike = of.made.get((index, there), [])
        if ordinal >= len(alike) or self.source.sizes[alike[ordinal]] != self.source.sizes[number]:
            raise NotRegularError("blocks alike make different storages")
        return self.numbers.pop((alike[ordinal], there_copy), None)

    def _write_birth(self, number: int, block: int | None, copy: int) -> None:
        source, out = self.source, self.out
        grown = self.growth.get(number, 0) * self.times
        self.numbers[number, copy] = len(out.sizes)
        out.sizes.append(source.sizes[number] + grown)
        out.categories.append(source.categories[number])
        out.operations.append(source.operations[number])
        out.dtypes.append(source.dtypes[number])
        out.shapes.append(source.shapes[number])
        out.modules.append(self._module(source.modules[number], block, copy))
        out.events.append(len(out.sizes))

    def _module(self, text: int, block: int | None, copy: int) -> int:
        """The module's name with the block's number in the deep model."""
        if block is None or block < self.of.first or self._position(block, copy) == block:
            return text
        old = self.out.texts[text]
        new = re.sub(rf"\.{block}(?=\.|$)", f".{self._position(block, copy)}", old, count=1)
        if new not in self.texts:
            self.texts[new] = len(self.out.texts)
            self.out.texts.append(new)
        return self.texts[new]
