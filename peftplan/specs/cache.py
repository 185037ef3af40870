"""What an attention layer keeps of every token, so that later ones need not compute it again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Expansion:
    """Latents in place of keys and values: whole ones are made of all of them anew for every token.

    The class multiplies the `keys` numbers of each earlier token into `num_outputs`, and holds `num_made` numbers
    of it while it attends. A server multiplies its query and its result instead, so that attention works on the
    latents: `key_dim` of them for a score, `value_dim` for the result.
    """

    num_outputs: int
    num_made: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class Cached:
    """Numbers that one layer keeps of one token, in the type it computes in.

    `keys` and `values` are those that the model's own class hands its cache: transformers keeps these. `shared`
    counts the same for a server where that keeps fewer: one key and value for a group of queries where the class
    spreads them. `heads` are those of queries; each multiplies `key_dim` numbers for a score and sums up
    `value_dim` for its result. `window`: how many positions a query sees, its own among them.
    """

    keys: int
    values: int
    heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    shared: int | None = None
    expansion: Expansion | None = None

    @property
    def num_values(self) -> int:
        """Numbers a token takes in the cache of transformers."""
        return self.keys + self.values

    @property
    def num_served(self) -> int:
        """The same in a server that keeps no more than it has to."""
        return self.num_values if self.shared is None else self.shared


def cached_heads(kv_heads: int, dim: int, heads: int, window: int | None = None) -> Cached:
    """Keys and values of as many heads, all equally wide: multi-head, grouped and multi-query attention."""
    return Cached(kv_heads * dim, kv_heads * dim, heads, dim, dim, window)
