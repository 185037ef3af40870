"""From the words of a request to an optimizer: options filled in, contradictions of a run refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from peftplan.errors import BadInput
from peftplan.optimizers.chosen import default_options
from peftplan.optimizers.row import Optimizer, OptimizerOptions, Weight
from peftplan.specs.formats import FP32

_ANY = Weight((4096, 4096), FP32)  # large enough for whatever small tensors are spared


class Run(NamedTuple):
    """What of a run an optimizer may not go with."""

    in_backward: bool
    grad_accum: int
    gpus: int
    masters: bool


def optimizer_options(
    row: Optimizer, given: Mapping[str, Any], config: Mapping[str, Any], trainer: bool
) -> OptimizerOptions:
    """The options of one optimizer alone; what it does not have or take is refused with what it has."""
    stated = {name.replace("-", "_"): value for name, value in given.items()}
    try:
        return row.options.model_validate({**default_options(row, config, trainer), **stated})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, known = str(first["loc"][0]), row.options.model_fields
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has no options of its own"
            raise BadInput(f"--optimizer-option {name} is none of --optimizer {row.name}; {has}") from None
        if first["type"] == "missing":
            raise BadInput(
                f"--optimizer {row.name} is told {name} by the model's config, and this one does not state it; "
                f"give --optimizer-option {name}=VALUE"
            ) from None
        told = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        raise BadInput(f"--optimizer-option {name}={first['input']} is not allowed; it {told}") from None


def refuse_run(row: Optimizer, options: OptimizerOptions, run: Run) -> None:
    """Refuse what a run asks of gradients that do not wait for the step, and of optimizers that see no masters."""
    if run.in_backward and row.beside is not None:
        raise BadInput(
            f"--optimizer-in-backward gives each weight an optimizer of one kind, and {row.name} is two; "
            "take another optimizer, or leave it out"
        )
    asked = run.in_backward and not row.in_backward
    what = "--optimizer-in-backward" if asked else f"--optimizer {row.name}"
    instead = "leave it out" if asked else "take another optimizer"
    waits = not asked and not row.in_backward and row.keeps_gradient(_ANY, options)
    if run.grad_accum > 1 and not waits:
        raise BadInput(
            f"{what} uses each gradient as it comes, so --grad-accum {run.grad_accum} has nothing to sum; take "
            f"--grad-accum 1, or {instead}"
        )
    if run.gpus > 1 and not waits:
        raise BadInput(
            f"{what} uses each gradient as it comes, before those of --gpus {run.gpus} are summed; take one GPU, "
            f"or {instead}"
        )
    if run.masters and (asked or row.in_backward or not row.takes_masters):
        raise BadInput(
            f"{what} updates the model's own weights and knows no masters; take --precision bf16 in place of "
            f"bf16-master, or {instead}"
        )


FOR_WHOLE_MODELS = "it keeps states of frozen weights too; take another, or --method full"


def refusal(row: Optimizer, weights: Sequence[Weight], options: OptimizerOptions) -> str:
    """Why an optimizer cannot train these tensors, in one line; empty where it can."""
    return row.refuses(weights, options)


def optimizer_notes(row: Optimizer, in_backward: bool, trainer: bool) -> list[str]:
    """What is to be said of an optimizer, and of a loop whose gradients are used as they come."""
    notes = [f"optimizer {row.name}: {note}" for note in row.notes]
    if in_backward or row.in_backward:
        clips = "Trainer's clipping finds none to clip" if trainer else "their norm cannot be clipped"
        notes.append(f"gradients are used as they come: the full set is never there, and {clips}")
    return notes
