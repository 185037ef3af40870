"""How long the examples of a training set are, in tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lengths:
    """Examples by their length: `counts` holds (tokens, examples) with rising tokens, no length of zero.

    Where tokens were estimated, their number lies between `low_frac` and `high_frac` of what stands here. Of a file
    too large to be read whole, `sampled_frac` was read, and `counts` stand for all of it.
    """

    counts: tuple[tuple[int, int], ...]
    basis: str
    low_frac: float = 1.0
    high_frac: float = 1.0
    num_empty: int = 0
    num_broken: int = 0
    broken_lines: tuple[int, ...] = ()  # of the file, the first few
    sampled_frac: float = 1.0

    @property
    def num_examples(self) -> int:
        """Examples with at least one token."""
        return sum(count for _, count in self.counts)

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples."""
        return sum(length * count for length, count in self.counts)

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return self.counts[-1][0] if self.counts else 0

    def quantile(self, frac: float) -> int:
        """The length that a share of the examples does not exceed [tokens]."""
        wanted, seen = frac * self.num_examples, 0
        for length, count in self.counts:
            seen += count
            if seen >= wanted:
                return length
        return self.longest
