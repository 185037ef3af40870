"""Bytes of keys and values: tokens that are kept, blocks, windows, latents."""

from __future__ import annotations

import pytest

from peftplan.arch import build_model
from peftplan.catalog import find_model
from peftplan.memory.kv_cache import (
    CachedLayers,
    CacheForm,
    cached_layers,
    read_bytes,
    read_flop,
    seen_tokens,
)
from peftplan.specs.cache import cached_heads

FULL = cached_heads(kv_heads=8, dim=128, heads=32)
WINDOWED = cached_heads(kv_heads=8, dim=128, heads=32, window=1024)
DYNAMIC, PAGED = CacheForm(2), CacheForm(2, 16)


def layers_of(name: str) -> tuple[CachedLayers, ...]:
    """The layers of a model of the catalogue."""
    found = find_model(name)
    assert found is not None
    return cached_layers(build_model(found.config))


@pytest.mark.parametrize(
    ("name", "token_bytes"),
    [
        ("llama-2-7b", 2 * 2 * 32 * 32 * 128),
        ("llama-2-70b", 2 * 2 * 80 * 8 * 128),
        ("falcon-7b", 2 * 2 * 32 * 1 * 64),
        ("deepseek-ai/DeepSeek-V3", 2 * 61 * (512 + 64)),
    ],
)
def test_a_token_takes_two_numbers_a_head_and_dimension(name: str, token_bytes: int) -> None:
    """Two bytes for a key and a value of every layer, head of keys and dimension; of latents, their width."""
    assert PAGED.token_bytes(layers_of(name)) == token_bytes


def test_a_server_keeps_one_key_for_a_group_that_falcon_spreads() -> None:
    """Falcon-40b's class copies 8 keys for 128 queries before it caches them."""
    layers = layers_of("tiiuae/falcon-40b")
    assert DYNAMIC.token_bytes(layers) == 16 * PAGED.token_bytes(layers)


@pytest.mark.parametrize(("tokens", "kept"), [(1, 16), (16, 16), (17, 32), (2047, 2048)])
def test_a_pool_gives_whole_blocks(tokens: int, kept: int) -> None:
    """A block that is begun is taken whole."""
    assert PAGED.tokens(FULL, tokens) == kept
    assert DYNAMIC.tokens(FULL, tokens) == tokens


@pytest.mark.parametrize(
    ("tokens", "dynamic", "paged"), [(1000, 1000, 1008), (1024, 1024, 1024), (8192, 1024, 1040)]
)
def test_a_window_is_kept_and_no_more(tokens: int, dynamic: int, paged: int) -> None:
    """transformers keeps the window's tokens; blocks may begin before it, so that a pool keeps one more."""
    assert DYNAMIC.tokens(WINDOWED, tokens) == dynamic
    assert PAGED.tokens(WINDOWED, tokens) == paged


def test_behind_a_prompt_transformers_still_holds_all_of_it() -> None:
    """A view of the last tokens keeps the whole tensor, until the first generated token makes another."""
    layers = (CachedLayers(WINDOWED, 2),)
    assert DYNAMIC.prompt_bytes(layers, 8192) == 8 * DYNAMIC.sequence_bytes(layers, 8192)
    assert PAGED.prompt_bytes(layers, 8192) == PAGED.sequence_bytes(layers, 8192)


def test_windows_alternate_with_full_layers() -> None:
    """Gemma 2's layers with a window and those without are told apart, and counted."""
    found = {layer.caches.window: layer.count for layer in layers_of("google/gemma-2-9b")}
    assert found == {4096: 21, None: 21}


def test_attention_reads_what_it_sees() -> None:
    """A query reads its window's keys and values once, and multiplies with each number twice for every head."""
    layers = (CachedLayers(WINDOWED, 3), CachedLayers(FULL, 1))
    assert seen_tokens(WINDOWED, 5000) == 1024
    assert read_bytes(layers, PAGED, 5000) == 2 * 2 * 8 * 128 * (3 * 1024 + 5000)
    assert read_flop(layers, 5000) == 2 * 2 * 32 * 128 * (3 * 1024 + 5000)


def test_a_cache_grows_by_a_copy_and_a_pool_in_place() -> None:
    """While DynamicCache joins a layer's keys, old and new ones are alive."""
    layers = (CachedLayers(FULL, 4),)
    assert DYNAMIC.growth_bytes(layers, 100) == 100 * 8 * 128 * 2
    assert PAGED.growth_bytes(layers, 100) == 0


def test_latents_are_expanded_by_transformers_alone() -> None:
    """Whole keys and values of 128 heads are made of 512 numbers; a server multiplies queries in their place."""
    layers = layers_of("deepseek-ai/DeepSeek-V3")
    made = 128 * (128 + 128) + 128 * (128 + 64)
    assert DYNAMIC.expanded_bytes(layers, 1000) == 2 * made * 1000
    assert PAGED.expanded_bytes(layers, 1000) == 0


@pytest.mark.parametrize("name", ["google-bert/bert-base-uncased", "google-t5/t5-small"])
def test_what_generates_no_token_by_token_keeps_nothing(name: str) -> None:
    """Encoders, and T5 with its two halves, have no layers here."""
    assert layers_of(name) == ()
