"""A run's own generation, by transformers' generate: before a step of GRPO, or within an evaluation.

All sequences go through together: their prompts in one pass, then a token of each at a time, behind a cache that
grows by a token in every layer. What a pass holds is played (`generation`), what the cache holds is counted
(`kv_cache`). Keys and values lie in the types in which attention gets them, which may differ.

Assumes: no sequence ends early; the cache grows where the pass holds most. vLLM, in a process beside the trainer
or in its own, is left out.

Source: transformers-generate, transformers-cache
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from peftplan.memory.generation import Pass, play_pass
from peftplan.memory.kv_cache import CachedLayers, CacheForm, cached_layers
from peftplan.memory.update import Script, moments
from peftplan.specs.formats import allocated_bytes
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec


@dataclass(frozen=True, slots=True)
class Generated:
    """`rows` sequences of `prompt` tokens, to each of which `new` are generated."""

    rows: int
    prompt: int
    new: int
    of_prompt: Pass
    of_token: Pass
    layers: tuple[CachedLayers, ...]
    sizes: tuple[int, int]  # bytes of a number among keys, and among values

    @property
    def itemsize(self) -> int:
        """Bytes of the wider of the two."""
        return max(self.sizes)

    def cache_bytes(self, num_tokens: int, behind_prompt: bool = False) -> int:
        """Keys and values of all sequences, rounded bytes; `behind_prompt`: no window has cut them yet."""
        sizes = ((layer.count, self._of(layer, num_tokens, behind_prompt)) for layer in self.layers)
        return sum(count * allocated_bytes(size) for count, both in sizes for size in both)

    def _of(self, layer: CachedLayers, num_tokens: int, behind_prompt: bool = False) -> tuple[int, int]:
        """Bytes of one layer's keys, and of its values."""
        form, caches = CacheForm(1), layer.caches
        tokens = self.rows * (num_tokens if behind_prompt else form.tokens(caches, num_tokens))
        return tokens * caches.keys * self.sizes[0], tokens * caches.values * self.sizes[1]

    @property
    def last(self) -> int:
        """Tokens in the cache at the end: all but the last, which is never fed back."""
        return self.prompt + self.extra + self.new - 1

    @property
    def extra(self) -> int:
        """Positions that a method puts before every sequence."""
        return self.of_prompt.extra_positions

    @property
    def parts(self) -> tuple[int, int]:
        """(keys and values, a pass beside them) where both together are most, rounded bytes."""
        after = self.prompt + self.extra
        prompts = self.cache_bytes(after, True), self.of_prompt.peak_bytes
        grows = max((max(self._of(layer, self.last)) for layer in self.layers), default=0)
        made = self.rows * CacheForm(self.itemsize).expanded_bytes(self.layers, self.last)
        token = max(self.of_token.peak_bytes, self.of_token.blocks_bytes + max(grows, made))
        return max(prompts, (self.cache_bytes(self.last), token), key=sum)

    @property
    def peak_bytes(self) -> int:
        """The most above what stands on the device, rounded."""
        return sum(self.parts)

    def write(self, script: Script) -> None:
        """Allocations and frees in their order: the prompts' pass, the cache at its end, and its end.

        What the cache leaves behind as it grows is left out: blocks that no longer suit, which the allocator
        gives back before it fails.
        """
        each = [layer for layer in self.layers for _ in range(layer.count)]
        held = [script.new(self._of(layer, self.prompt + self.extra, True)) for layer in each]
        _write_pass(script, self.of_prompt)
        for place, layer in enumerate(each):
            before, held[place] = held[place], []
            for old, size in zip(before, self._of(layer, self.last)):
                held[place] += script.new([size])
                script.free([old])
        _write_pass(script, self.of_token)
        for made in held:
            script.free(made)


def generated(model: ModelSpec, step: StepSpec, rows: int, prompt: int, new: int) -> Generated:
    """Play both passes of the model as it trains, without checkpoints and without dropout."""
    step = replace(step, padding_free=False, style=replace(step.style, rows=1))
    of_prompt, of_token = play_pass(model, step, rows, prompt, rows), play_pass(model, step, rows, 1, rows)
    types = of_prompt.timeline.player.kept_types
    return Generated(
        rows, prompt, new, of_prompt, of_token, cached_layers(model), (types[0].itemsize, types[1].itemsize)
    )


def before_a_step(model: ModelSpec, step: StepSpec) -> Generated | None:
    """What a style generates before each step: the completions of all its micro-batches; None where it does not."""
    if not step.style.generates:
        return None
    rows = step.num_rows * step.style.micro_batches
    return generated(model, step, rows, step.row_len - step.style.completion_len, step.style.completion_len)


def within_evaluation(model: ModelSpec, step: StepSpec) -> Generated | None:
    """What an evaluation generates behind each sequence of a micro-batch; None where it does not."""
    if not step.style.evaluation_tokens:
        return None
    return generated(model, step, step.micro_batch, step.seq_len, step.style.evaluation_tokens)


def _write_pass(script: Script, played: Pass) -> None:
    """A pass's events; of blocks that are alike, those that were played."""
    records = played.timeline.records
    keys = [next(script.keys) for _ in records]
    script.events += [(keys[number], size) for _, number, size in moments(records)]
