"""`peftplan methods [MODEL]`: the fine-tuning methods, and what each comes to on a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from peftplan.catalog.names import normalise
from peftplan.cli.catalogue import Row, matching, rows_as_csv, rows_as_json, rows_schema
from peftplan.cli.options import model_names, request_from, request_options
from peftplan.cli.output import chosen_form, emit, output_options, write_schema
from peftplan.cli.progress import progress_bar
from peftplan.cli.spec import Argument, Command
from peftplan.errors import BadInput, NotFound
from peftplan.methods import METHODS, Method

if TYPE_CHECKING:
    from peftplan.report import InitialisationFacts
    from peftplan.request import Request

FIELDS = {
    "name": "name to give to --method",
    "summary": "what it does",
    "frozen_base": "whether the base's weights stay as they are",
    "default_precision": "its recipe unless another is asked for",
    "default_quant": "how it stores the frozen linears, or null",
    "default_rank": "its rank unless another is asked for, or null: that of the request",
    "options": "options of its own, for --method-option: each with what it means and its default",
    "merging": "whether and how it is merged into the base",
    "inference": "what it costs at inference",
    "paper": "the paper that describes it",
    "peft": "the release of peft whose code was read, or null: peft does not have it",
    "source": "key of its source",
    "num_trainable_params": "on MODEL: how many parameters train; null without a model, or where it is refused",
    "trainable_frac": "on MODEL: their share of all parameters",
    "adapter_checkpoint_bytes": "on MODEL: bytes of a saved adapter",
    "activations_bytes": "on MODEL: alive at the end of forward beyond resident state",
    "peak_allocated_bytes": "on MODEL: the peak of allocated memory",
    "init_reads": "on MODEL: what its initialisation reads before training: weights, inputs, gradients; or null",
    "init_beside_bytes": "on MODEL: the most that initialisation allocates beside the model, without its passes",
    "init_disk_bytes": "on MODEL: what initialisation asks to be kept on disk beside the adapter",
    "init_num_flop": "on MODEL: flop of its factorisations",
    "init_least_s": "on MODEL, with --gpu: seconds that these take at no less than the card's rate of products",
    "step_s": "on MODEL, with --gpu: seconds of an optimizer step",
    "refused": "on MODEL: why the method does not run on it, or null",
}
ON_MODEL = tuple(FIELDS)[-12:]


def run(given: dict[str, Any]) -> int:
    """List the methods whose name holds the word, or what all come to on the model that it names."""
    if given.get("json_schema"):
        return write_schema(rows_schema(FIELDS))
    form = chosen_form(given)
    word = given.get("model", "")
    rows = matching(
        [_facts(method) for method in METHODS.values()], word, lambda row: [row["name"], row["summary"]]
    )
    title = f"{len(rows)} methods"
    on_model = bool(word) and not any(normalise(word) in normalise(row["name"]) for row in rows)
    if on_model:
        rows, title = _on_model(word, given), ""
    from peftplan.render.methods import facts_blocks, model_table

    emit(
        form,
        lambda: rows_as_json(rows),
        lambda: model_table(rows, word) if on_model else facts_blocks(rows, title),
        lambda: rows_as_csv(rows),
    )
    return 0


def _facts(method: Method) -> Row:
    from peftplan.sources import SOURCES
    from peftplan.versions import REFERENCE

    source = SOURCES[method.source]
    return {
        "name": method.name,
        "summary": method.summary,
        "frozen_base": method.frozen_base,
        "default_precision": method.default_precision,
        "default_quant": method.default_quant,
        "default_rank": method.default_rank,
        "options": [_option(name, field) for name, field in method.options.model_fields.items()],
        "merging": method.merging,
        "inference": method.inference,
        "paper": f"{source.title}, {source.where}",
        "peft": REFERENCE.peft if method.peft else None,
        "source": method.source,
        **dict.fromkeys(ON_MODEL),
    }


def _first(found: InitialisationFacts | None) -> Row:
    """What is computed once before training, field by field."""
    names = ("reads", "beside_bytes", "disk_bytes", "num_flop", "least_s")
    return {f"init_{name}": None if found is None else getattr(found, name) for name in names}


def _option(name: str, field: Any) -> str:
    default = "" if field.default is None else f"; default {field.default}"
    return f"{name}: {field.description}{default}"


def _on_model(word: str, given: dict[str, Any]) -> list[Row]:
    """Every method on the model, those that need least first, refused ones last."""
    try:
        request = request_from({**given, "model": word})
        with progress_bar("estimating") as progress:
            rows = [{**_facts(METHODS[name]), **figures} for name, figures in _answers(request, progress)]
    except NotFound as error:
        raise NotFound(f"nothing matches {word!r} among the methods, and {error}") from None
    return sorted(rows, key=lambda row: (row["refused"] is not None, row["peak_allocated_bytes"] or 0))


def _answers(request: Request, progress: Callable[[float, str], None] | None) -> Iterator[tuple[str, Row]]:
    from peftplan.memory.repeated import Plays
    from peftplan.planner import estimate

    plays = Plays()  # nothing here is read that needs every block
    for number, (name, method) in enumerate(METHODS.items()):
        if progress is not None:
            progress(number / len(METHODS), name)
        known = method.options.model_fields
        own = {key: value for key, value in request.method_options.items() if key in known}
        try:
            asked = request.model_copy(update={"method": name, "method_options": own})
            answer = estimate(asked, recipes=False, breakdown=False, plays=plays)
        except BadInput as error:
            yield name, {"refused": str(error)}
            continue
        yield (
            name,
            {
                "num_trainable_params": answer.method.num_trainable_params,
                "trainable_frac": answer.method.trainable_frac,
                "adapter_checkpoint_bytes": answer.method.adapter_checkpoint_bytes,
                "activations_bytes": answer.memory.activations_bytes,
                "peak_allocated_bytes": answer.memory.peak_allocated_bytes,
                **_first(answer.method.initialisation),
                "step_s": answer.time.step_s if answer.time is not None else None,
            },
        )


COMMAND = Command(
    run,
    (
        Argument(
            "model",
            "a model, to see what each method comes to on it; or part of a method's name, to see only those",
            required=False,
            complete=model_names,
        ),
    ),
    (*request_options(without=("method",)), *output_options()),
    f"The JSON holds rows; each has {', '.join(FIELDS)}.",
)
