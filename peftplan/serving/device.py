"""What one GPU holds: the base, hot adapters, keys and values, what a pass needs; and how far its memory goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from peftplan.breakdown import Node, branch, leaf
from peftplan.memory.generation import Pass, play_pass
from peftplan.memory.kv_cache import CachedLayers, CacheForm, cached_layers
from peftplan.memory.overheads import Context, cublas_workspace_bytes
from peftplan.memory.resident import Tally
from peftplan.serving.adapters import Served
from peftplan.serving.answers import Cache, CacheRow, Limits
from peftplan.serving.options import MAX_CONCURRENCY, Serving
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.units import format_bytes


@dataclass(frozen=True, slots=True)
class Demand:
    """What a GPU is asked to hold at once, beside the base."""

    concurrency: int
    hot: int
    seq_len: int


@dataclass(slots=True)
class Shape:
    """A server's memory as a function of its load."""

    served: Served
    serving: Serving
    step: StepSpec
    form: CacheForm
    layers: tuple[CachedLayers, ...]
    weights: Tally
    outside: Context
    asked: Demand
    prompt_positions: int  # that a method puts before every sequence

    @property
    def mixes(self) -> bool:
        """Whether rows of one batch may each have another adapter; what stands before a sequence is its own."""
        pairs = self.served.pairs
        linears = pairs is not None and all(pair.of_linear for pair in pairs)
        return bool(self.prompt_positions) or linears or (self.paged and pairs is not None)

    @property
    def paged(self) -> bool:
        """Whether the cache is a pool, filled in chunks."""
        return self.form.block is not None

    def prompt_tokens(self, load: Demand) -> int:
        """Tokens of one prompt: all that are not generated, and one at least."""
        return max(1, load.seq_len - (self.serving.new_tokens or 1))

    def sequence_bytes(self, load: Demand) -> int:
        """One sequence's cache at its largest: behind the prompt, or when the last token has been generated."""
        kept = self.cached_tokens(load)
        behind_prompt = self.prompt_tokens(load) + self.prompt_positions
        return max(self.form.sequence_bytes(self.layers, kept), self.form.prompt_bytes(self.layers, behind_prompt))

    def cached_tokens(self, load: Demand) -> int:
        """All but the last token, which is never fed back, and what a method puts before them."""
        return load.seq_len - 1 + self.prompt_positions

    def prefill(self, load: Demand) -> Pass:
        """The pass over prompts: all of them at once, or a chunk."""
        prompt = self.prompt_tokens(load)
        if not self.paged:
            return play_pass(self.served.adapted, self.step, load.concurrency, prompt, load.concurrency)
        tokens = min(self.serving.prefill_chunk, prompt * load.concurrency)
        return play_pass(self.served.adapted, self.step, 1, tokens, load.concurrency)

    def decode(self, load: Demand, adapted: bool = True) -> Pass:
        """The pass over one token of every sequence; what stands before a sequence has passed with its prompt."""
        return play_pass(self.decoding(adapted), self.step, load.concurrency, 1, load.concurrency)

    def decoding(self, adapted: bool = True) -> ModelSpec:
        """The model that generates: with the adapter, where that does anything behind the prompt."""
        return self.served.adapted if adapted and not self.prompt_positions else self.served.base

    def expanded_bytes(self, load: Demand) -> int:
        """Whole keys and values that one layer makes of latents at each token, of all sequences."""
        return load.concurrency * self.form.expanded_bytes(self.layers, self.cached_tokens(load))

    def pass_bytes(self, load: Demand) -> tuple[int, int]:
        """The most that a pass holds beside weights and cache: of prompts, and of generation."""
        growth = self.form.growth_bytes(self.layers, self.cached_tokens(load)) * load.concurrency
        step = self.decode(load)
        growing = step.blocks_bytes + max(growth, self.expanded_bytes(load))
        return self.prefill(load).peak_bytes, max(step.peak_bytes, growing)

    def total_bytes(self, load: Demand) -> int:
        """All of it, with the middle of what lies outside torch's allocator."""
        return self.allocated_bytes(load) + self.outside.middle_bytes

    def allocated_bytes(self, load: Demand) -> int:
        """All that torch's allocator hands out."""
        return (
            self.weights.allocated
            + load.hot * self.served.hot_bytes
            + load.concurrency * self.sequence_bytes(load)
            + max(self.pass_bytes(load))
            + cublas_workspace_bytes(self.step.compute_capability)
        )

    def breakdown(self) -> Node:
        """The parts of the load that is asked for."""
        load, served = self.asked, self.served
        prefill, decode = self.pass_bytes(load)
        weights = [leaf(name, size) for name, size in sorted(self.weights.parts.items(), key=lambda row: -row[1])]
        rounding = self.weights.allocated - self.weights.requested
        of_prompts = prefill >= decode
        return branch(
            "device",
            (
                branch("base weights", (*weights, leaf("rounding to 512 bytes", rounding))),
                leaf(
                    "hot adapters",
                    load.hot * served.hot_bytes,
                    f"{load.hot:,} x {format_bytes(served.hot_bytes)}",
                ),
                leaf(
                    "keys and values",
                    load.concurrency * self.sequence_bytes(load),
                    f"{load.concurrency:,} x {format_bytes(self.sequence_bytes(load))}",
                ),
                leaf(
                    "a pass over prompts" if of_prompts else "a step of generation",
                    max(prefill, decode),
                    f"the larger of prompts {format_bytes(prefill)} and generation {format_bytes(decode)}",
                ),
                leaf("cuBLAS workspace", cublas_workspace_bytes(self.step.compute_capability)),
                leaf("CUDA context", self.outside.middle_bytes, self.outside.basis),
            ),
        )

    def cache(self, dtype: str) -> Cache:
        """Keys and values of the load that is asked for."""
        load = self.asked
        kept = self.cached_tokens(load)
        return Cache.model_construct(
            form="blocks of a pool" if self.paged else "transformers' DynamicCache",
            dtype=dtype,
            block_tokens=self.form.block,
            bytes_per_token=self.form.token_bytes(self.layers),
            sequence_bytes=self.sequence_bytes(load),
            prompt_bytes=self.form.prompt_bytes(self.layers, self.prompt_tokens(load) + self.prompt_positions),
            bytes=self.sequence_bytes(load) * load.concurrency,
            expanded_bytes=self.expanded_bytes(load),
            layers=tuple(self._row(layer, kept) for layer in self.layers),
        )

    def _row(self, layer: CachedLayers, kept: int) -> CacheRow:
        caches = layer.caches
        kind = "latents" if caches.expansion is not None else "keys and values"
        return CacheRow.model_construct(
            kind=kind if caches.window is None else f"{kind} in a window",
            layers=layer.count,
            values_per_token=self.form.values(caches),
            window=caches.window,
            tokens=self.form.tokens(caches, kept),
            bytes=layer.count * self.form.layer_bytes(caches, kept),
        )


def shape_of(
    served: Served, serving: Serving, step: StepSpec, form: CacheForm, outside: Context, seq_len: int
) -> Shape:
    """The server of these models and options."""
    assert serving.hot is not None
    asked = Demand(serving.concurrency, serving.hot, seq_len)
    shape = Shape(
        served, serving, step, form, cached_layers(served.adapted), weights_of(served.stored), outside, asked, 0
    )
    shape.prompt_positions = shape.prefill(asked).extra_positions
    return shape


def weights_of(model: ModelSpec) -> Tally:
    """The base as it lies on the device."""
    tally = Tally()
    for _, parameter, count in model.parameters():
        kind = "buffers" if parameter.role == "buffer" else "16 or 32 bit"
        if parameter.quant is not None:
            kind = parameter.quant.kind
        elif parameter.role == "weight":
            kind = parameter.dtype.short
        for storage, size in parameter.storages():
            tally.add(f"{kind}: {storage}" if parameter.quant is not None else kind, (size,), count)
    return tally


def most(fits: Callable[[int], bool], least: int = 1, *, limit: int) -> int | None:
    """The largest number that fits, of those that fit up to some bound; None where the least does not."""
    if not fits(least):
        return None
    low, step = least, 1
    while low + step <= limit and fits(low + step):
        low += step
        step *= 2
    high = min(low + step, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def limits(shape: Shape, room_bytes: int, num_adapters: int, longest: int) -> Limits:
    """How far so many bytes go: sequences, hot adapters, tokens in a sequence, tokens of all sequences together."""
    asked = shape.asked

    @lru_cache(maxsize=256)
    def total(concurrency: int, hot: int, seq_len: int) -> int:
        return shape.total_bytes(Demand(concurrency, hot, seq_len))

    rest = room_bytes - total(asked.concurrency, asked.hot, asked.seq_len)
    spare = rest + asked.hot * shape.served.hot_bytes
    hot = min(num_adapters, spare // shape.served.hot_bytes) if spare >= shape.served.hot_bytes else None
    pool = rest + asked.concurrency * shape.sequence_bytes(asked)
    per_token = shape.form.token_bytes(shape.layers)
    return Limits.model_construct(
        max_concurrency=most(lambda n: total(n, asked.hot, asked.seq_len) <= room_bytes, limit=MAX_CONCURRENCY),
        max_hot=hot,
        max_seq_len=most(
            lambda n: total(asked.concurrency, asked.hot, n) <= room_bytes, least=2, limit=max(longest, 2)
        ),
        cache_tokens=pool // per_token if shape.paged and pool > 0 else None,
    )
