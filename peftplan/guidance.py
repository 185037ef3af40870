"""Which advice bears on a run. It is shown where it is asked for, and no figure knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftplan.catalog.guidance import EVIDENCE, Guidance, Scope, all_guidance
from peftplan.methods import METHODS
from peftplan.sources import SOURCES


def guidance_for(request: Mapping[str, Any], num_params: int) -> tuple[Guidance, ...]:
    """The records that bear on a run whose defaults are filled in."""
    return tuple(record for record in all_guidance() if _bears(record.scope, request, num_params))


def as_line(record: Guidance) -> str:
    """One record as people read it: topic, advice, grade, source."""
    source = SOURCES[record.source]
    return f"{record.topic}: {record.text} ({EVIDENCE[record.evidence]}: {source.title}, {source.version})"


def as_fields(record: Guidance) -> dict[str, str]:
    """One record as an answer's JSON has it."""
    source = SOURCES[record.source]
    return {
        "topic": record.topic,
        "text": record.text,
        "evidence": record.evidence,
        "source": record.source,
        "title": source.title,
        "where": source.where,
    }


def _bears(scope: Scope, request: Mapping[str, Any], num_params: int) -> bool:
    method = METHODS.get(request["method"])
    batch = request["micro_batch"] * request["grad_accum"] * request["gpus"]
    named: tuple[tuple[tuple[str, ...] | None, object], ...] = (
        (scope.methods, request["method"]),
        (scope.quants, request["quant"]),
        (scope.base_dtypes, request["base_dtype"]),
        (scope.targets, request["targets"]),
        (scope.styles, request.get("style")),
    )
    return (
        all(allowed is None or value in allowed for allowed, value in named)
        and request["method"] not in scope.methods_not
        and (scope.peft_type is None or (method is not None and method.peft.get("peft_type") == scope.peft_type))
        and (scope.frozen_base is None or (method is None or method.frozen_base) is scope.frozen_base)
        and (scope.packed is None or (request["quant"] is not None) is scope.packed)
        and request["rank"] >= scope.rank_from
        and batch >= scope.global_batch_from
        and num_params > scope.params_above
    )
