"""Reading a Hugging Face config: every value checked, every refusal one clear line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftplan.errors import BadInput, shown
from peftplan.specs.behaviour import REFERENCE, Behaviour

# Larger than anything trained; a config beyond these is damaged, and its sums would mean nothing.
MAX_WIDTH = 10**7
MAX_COUNT = 10**5


class Config(Mapping[str, Any]):
    """A config.json's content with typed access; errors name the key, its value and what is allowed."""

    def __init__(self, values: Mapping[str, Any], where: str = "config", behaviour: Behaviour = REFERENCE) -> None:
        self.values_by_key = values
        self.where = where
        self.behaviour = behaviour  # of the libraries that build the model

    def __getitem__(self, key: str) -> Any:
        return self.values_by_key[key]

    def __iter__(self) -> Any:
        return iter(self.values_by_key)

    def __len__(self) -> int:
        return len(self.values_by_key)

    def fail(self, key: str, value: object, allowed: str) -> BadInput:
        """The error for a value that cannot be used."""
        return BadInput(f"{self.where}: {key} is {shown(value)}; it must be {allowed}")

    def size(self, key: str, default: int | None = None, *, limit: int = MAX_WIDTH) -> int:
        """A positive whole number; None or an absent key means `default`, and no default is an error."""
        value = self.values_by_key.get(key)
        if value is None:
            if default is None:
                raise BadInput(f"{self.where}: {key} is missing; a config of this family must have it")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise self.fail(key, value, f"a whole number from 1 to {limit}")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A number of layers, heads or experts: positive, and not beyond any model's."""
        return self.size(key, default, limit=MAX_COUNT)

    def natural(self, key: str, default: int = 0) -> int:
        """A whole number that may be 0."""
        value = self.values_by_key.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_WIDTH:
            raise self.fail(key, value, f"a whole number from 0 to {MAX_WIDTH}")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self.values_by_key.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise self.fail(key, value, "a finite number")
        if value in (float("inf"), float("-inf")):
            raise self.fail(key, value, "a finite number")
        return float(value)

    def probability(self, key: str, default: float = 0.0) -> float:
        """A dropout probability: from 0 up to, not including, 1."""
        value = self.number(key, default)
        if not 0.0 <= value < 1.0:
            raise self.fail(key, value, "a probability from 0 up to 1")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.values_by_key.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(key, value, "true or false")
        return value

    def word(self, key: str, default: str, allowed: tuple[str, ...] | None = None) -> str:
        """A string, perhaps one of a list."""
        value = self.values_by_key.get(key)
        if value is None:
            return default
        if not isinstance(value, str) or (allowed is not None and value not in allowed):
            raise self.fail(key, value, f"one of {', '.join(allowed)}" if allowed else "a word")
        return value

    def words(self, key: str) -> list[str] | None:
        """A list of strings, or None where the key is absent."""
        value = self.values_by_key.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.fail(key, value, "a list of words")
        return value

    def section(self, key: str) -> Config | None:
        """A nested object, or None where the key is absent."""
        value = self.values_by_key.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.fail(key, value, "an object")
        return Config(value, f"{self.where}.{key}", self.behaviour)

    def divides(self, key: str, value: int, of_key: str, of_value: int) -> None:
        """Refuse a value that must divide another and does not."""
        if of_value % value:
            raise self.fail(key, value, f"a divisor of {of_key} ({of_value})")


def alias(c: Config, *keys: str) -> str:
    """Whichever of several names for one value the config uses; the first where it uses none."""
    for key in keys:
        if c.get(key) is not None:
            return key
    return keys[0]


# Activation functions of transformers' ACT2FN that the readers know.
ACTIVATION_NAMES = (
    "silu",
    "swish",
    "gelu",
    "gelu_new",
    "gelu_fast",
    "gelu_pytorch_tanh",
    "quick_gelu",
    "relu",
    "tanh",
)


def activation(c: Config, key: str, default: str) -> str:
    """The name of an activation function."""
    return c.word(key, default, ACTIVATION_NAMES)


def head_dim(c: Config, hidden: int, heads: int) -> int:
    """The width of one attention head: stated, or the hidden size shared among the heads."""
    if c.get("head_dim") is not None:
        return c.size("head_dim")
    c.divides("num_attention_heads", heads, "hidden_size", hidden)
    return hidden // heads
