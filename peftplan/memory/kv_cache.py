"""Bytes of keys and values that generation keeps, in the two ways in which libraries keep them.

`dynamic`: transformers' DynamicCache. Each layer joins what it kept with what is new, in the type it computes in,
as many numbers as the model's class hands it: whole keys and values of every head for DeepSeek's latents. A layer
with a window keeps a view of the last `window - 1` tokens; what is alive is the tensor below it, which holds the
whole prompt until the first token is generated, and `window` tokens from then on.

`paged`: a server's pool of blocks (vLLM, S-LoRA). Whole blocks of some tokens each, as many as the sequence has; a
layer with a window holds those that the window touches, which may begin anywhere in a block. Latents stay latents,
and a group of queries has one key and value.

Source: transformers-cache, vllm-kv-cache
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from peftplan.specs.cache import Cached
from peftplan.specs.model import ModelSpec


@dataclass(frozen=True, slots=True)
class CachedLayers:
    """`count` layers that keep the same of every token."""

    caches: Cached
    count: int


def cached_layers(model: ModelSpec) -> tuple[CachedLayers, ...]:
    """The model's layers by what they keep, in order of first appearance; none where it keeps nothing."""
    found: dict[Cached, int] = {}
    for block, count, _ in model.groups()[1:]:
        for _, module in block.walk():
            if module.caches is not None:
                found[module.caches] = found.get(module.caches, 0) + count
    return tuple(CachedLayers(caches, count) for caches, count in found.items())


@dataclass(frozen=True, slots=True)
class CacheForm:
    """How a cache is kept: in blocks of `block` tokens, or, without one, as DynamicCache does."""

    itemsize: int  # bytes of one number
    block: int | None = None

    def values(self, caches: Cached) -> int:
        """Numbers that one layer keeps of a token."""
        return caches.num_values if self.block is None else caches.num_served

    def tokens(self, caches: Cached, num_tokens: int) -> int:
        """For how many tokens a layer holds memory once a sequence of so many has been seen, one by one."""
        window = caches.window
        if self.block is None:
            return num_tokens if window is None else min(num_tokens, window)
        blocks = -(-num_tokens // self.block)
        if window is not None:
            # the last window - 1 tokens and the new one; their first may lie anywhere in its block
            blocks = min(blocks, -(-window // self.block) + 1)
        return blocks * self.block

    def layer_bytes(self, caches: Cached, num_tokens: int) -> int:
        """One layer's bytes of one sequence."""
        return self.tokens(caches, num_tokens) * self.values(caches) * self.itemsize

    def sequence_bytes(self, layers: Iterable[CachedLayers], num_tokens: int) -> int:
        """All layers' bytes of one sequence, at the end of which so many tokens have been seen."""
        return sum(layer.count * self.layer_bytes(layer.caches, num_tokens) for layer in layers)

    def prompt_bytes(self, layers: Iterable[CachedLayers], num_tokens: int) -> int:
        """The same just behind a prompt of so many tokens, given in one pass: here no window has cut it yet."""
        if self.block is not None:
            return self.sequence_bytes(layers, num_tokens)
        return sum(layer.count * num_tokens * self.values(layer.caches) * self.itemsize for layer in layers)

    def growth_bytes(self, layers: Iterable[CachedLayers], num_tokens: int) -> int:
        """Beside the cache while a layer grows by a token: its keys old and new; a pool only writes in place."""
        if self.block is not None:
            return 0
        return max(
            (
                self.tokens(x.caches, num_tokens) * max(x.caches.keys, x.caches.values) * self.itemsize
                for x in layers
            ),
            default=0,
        )

    def expanded_bytes(self, layers: Iterable[CachedLayers], num_tokens: int) -> int:
        """Whole keys and values that a layer makes of a sequence's latents for one token; a pool keeps latents."""
        if self.block is not None:
            return 0
        made = max((x.caches.expansion.num_made for x in layers if x.caches.expansion is not None), default=0)
        return made * self.itemsize * num_tokens

    def token_bytes(self, layers: Iterable[CachedLayers]) -> int:
        """What one more token takes where no window is full and no block begins."""
        return sum(layer.count * self.values(layer.caches) for layer in layers) * self.itemsize


def read_bytes(layers: Iterable[CachedLayers], form: CacheForm, num_tokens: int) -> int:
    """What one token's attention reads of a cache that holds so many tokens: those that it sees."""
    return sum(
        layer.count * seen_tokens(layer.caches, num_tokens) * form.values(layer.caches) * form.itemsize
        for layer in layers
    )


def read_flop(layers: Iterable[CachedLayers], num_tokens: int) -> int:
    """Flop of one token's attention over them: a score and a share of the result from every head."""
    return sum(
        2 * layer.count * seen_tokens(x, num_tokens) * x.heads * (x.key_dim + x.value_dim)
        for layer in layers
        for x in (layer.caches,)
    )


def seen_tokens(caches: Cached, num_tokens: int) -> int:
    """How many of so many positions a query sees."""
    return num_tokens if caches.window is None else min(num_tokens, caches.window)
