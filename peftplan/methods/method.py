"""What a method is to the rest of peftplan: a name, facts, options of its own, and how it rewrites a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec

# Fields of a request that a method may have a use for; what it does not take is said to have no effect.
SHARED = ("rank", "alpha", "dropout", "targets", "bias", "modules_to_save", "adapter_dtype")


class Options(BaseModel):
    """Options of one method alone, under the names that peft's config has for them; this one has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        """Names with commas between them, where an option takes several."""
        if not isinstance(given, dict):
            return given
        several = {name for name, field in cls.model_fields.items() if "tuple" in str(field.annotation)}
        return {
            name: [part.strip() for part in value.split(",") if part.strip()]
            if name in several and isinstance(value, str)
            else value
            for name, value in given.items()
        }

    def peft_fields(self) -> dict[str, Any]:
        """The fields of peft's config that these options state; what is None is left to peft."""
        stated = {name: value for name, value in self.model_dump().items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in stated.items()}


@dataclass(frozen=True, slots=True)
class Method:
    """One method: its name, a sentence, the rewriting, and the defaults a request takes from it.

    `peft` are the fields of peft's config that make the method what it is, `peft_type` among them; empty for
    what peft has no config for. `takes` are the fields of a request that change it. `source` is its paper.
    `merging` and `inference` say what becomes of it after training.
    """

    name: str
    summary: str
    source: str
    apply: Callable[[ModelSpec, MethodSpec], None]
    frozen_base: bool = True
    default_precision: str = "bf16-mixed"
    default_quant: str | None = None
    default_rank: int | None = None
    peft: Mapping[str, Any] = field(default_factory=dict)
    options: type[Options] = Options
    takes: tuple[str, ...] = SHARED
    merging: str = "into the weights"
    # whether peft puts it into the base's weights; `merging` says how, or why not
    merges: bool = True
    inference: str = "none once merged"
    # adapters that do not train, by a part of their names; peft knows nothing of it
    freezes: tuple[str, ...] = ()
    # without adapters: a regular expression of the names of what trains
    trained: Callable[[ModelSpec, MethodSpec], str] | None = None
    # words on what is no figure: initialisations, learning rates
    notes: tuple[str, ...] = ()
