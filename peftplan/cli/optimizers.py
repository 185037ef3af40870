"""`peftplan optimizers [MODEL]`: the optimizers, and what each comes to on a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from peftplan.catalog.names import normalise
from peftplan.cli.catalogue import Row, matching, rows_as_csv, rows_as_json, rows_schema
from peftplan.cli.options import model_names, request_from, request_options
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.spec import Argument, Command
from peftplan.errors import BadInput, NotFound
from peftplan.optimizers import OPTIMIZERS, Optimizer

if TYPE_CHECKING:
    from peftplan.request import Request

FIELDS = {
    "name": "name to give to --optimizer",
    "aliases": "other names of it, Trainer's --optim among them",
    "summary": "what it keeps, and what a step holds",
    "options": "options of its own, for --optimizer-option: each with what it means and its default",
    "in_backward": "whether tensors are updated as gradients come",
    "library": "whose files it mirrors, or its paper",
    "source": "key of its source",
    "optimizer_states_bytes": "on MODEL: states on the device",
    "optimizer_paged_bytes": "on MODEL: states in managed memory",
    "optimizer_host_bytes": "on MODEL: what it keeps in the host's memory",
    "gradients_bytes": "on MODEL: gradients that wait for the step",
    "peak_allocated_bytes": "on MODEL: the peak of allocated memory",
    "device_bytes": "on MODEL: the process on the device, pages included",
    "step_s": "on MODEL, with --gpu: seconds of an optimizer step",
    "refused": "on MODEL: why the optimizer does not run on it, or null",
}
ON_MODEL = tuple(FIELDS)[-8:]


def run(given: dict[str, Any]) -> int:
    """List the optimizers whose name holds the word, or what all come to on the model that it names."""
    if given.get("json_schema"):
        return write_schema(rows_schema(FIELDS))
    form = chosen_form(given)
    word = given.get("model", "")
    rows = matching([_facts(row) for row in OPTIMIZERS.values()], word, _names)
    title = f"{len(rows)} optimizers"
    on_model = bool(word) and not any(normalise(word) in normalise(name) for row in rows for name in _names(row))
    if on_model:
        rows, title = _on_model(word, given), ""
    from peftplan.render.optimizers import facts_blocks, model_blocks

    emit(
        form,
        lambda: rows_as_json(rows),
        lambda: model_blocks(rows, word, given.get("method") or "") if on_model else facts_blocks(rows, title),
        lambda: rows_as_csv(rows),
    )
    return 0


def _names(row: Row) -> list[str]:
    return [row["name"], *row["aliases"]]


def _facts(row: Optimizer) -> Row:
    from peftplan.sources import SOURCES

    source = SOURCES[row.source]
    return {
        "name": row.name,
        "aliases": list(row.aliases),
        "summary": row.summary,
        "options": [_option(name, field) for name, field in row.options.model_fields.items()],
        "in_backward": row.in_backward,
        "library": f"{source.version}: {source.where}",
        "source": row.source,
        **dict.fromkeys(ON_MODEL),
    }


def _option(name: str, field: Any) -> str:
    default = "" if field.is_required() else f"; default {field.default}"
    return f"{name}: {field.description}{default}"


def _on_model(word: str, given: dict[str, Any]) -> list[Row]:
    """Every optimizer on the model, those that need least first, refused ones last."""
    try:
        request = request_from({**given, "model": word})
        rows = [{**_facts(OPTIMIZERS[name]), **figures} for name, figures in _answers(request)]
    except NotFound as error:
        raise NotFound(f"nothing matches {word!r} among the optimizers, and {error}") from None
    return sorted(rows, key=lambda row: (row["refused"] is not None, row["peak_allocated_bytes"] or 0))


def _answers(request: Request) -> Iterator[tuple[str, Row]]:
    from peftplan.planner import estimate

    for name, row in OPTIMIZERS.items():
        known = row.options.model_fields
        own = {key: value for key, value in request.optimizer_options.items() if key in known}
        try:
            asked = request.model_copy(update={"optimizer": name, "optimizer_options": own})
            answer = estimate(asked, recipes=False, breakdown=False)
        except BadInput as error:
            yield name, {"refused": str(error)}
            continue
        memory = answer.memory
        yield (
            name,
            {
                "optimizer_states_bytes": memory.resident.optimizer_states,
                "optimizer_paged_bytes": memory.optimizer_paged_bytes,
                "optimizer_host_bytes": memory.optimizer_host_bytes,
                "gradients_bytes": memory.resident.gradients,
                "peak_allocated_bytes": memory.peak_allocated_bytes,
                "device_bytes": memory.device_bytes,
                "step_s": answer.time.step_s if answer.time is not None else None,
            },
        )


COMMAND = Command(
    run,
    (
        Argument(
            "model",
            "a model, to see what each optimizer comes to on it; or part of an optimizer's name, to see only those",
            required=False,
            complete=model_names,
        ),
    ),
    (*request_options(without=("optimizer",)), *output_options()),
    f"The JSON holds rows; each has {', '.join(FIELDS)}.",
)
