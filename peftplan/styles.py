"""What a request says of its training style: defaults filled in, contradictions refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from peftplan.arch.score_head import put_score_head
from peftplan.errors import BadInput
from peftplan.methods.wrapping import freeze
from peftplan.request import Request
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.style import CLASSIFICATION, NEXT_TOKEN, StyleSpec

DPO, ORPO, KTO, GRPO = "dpo", "orpo", "kto", "grpo"
WITH_REFERENCE = (DPO, KTO, GRPO)
PAIRS = (DPO, ORPO)  # a chosen and a rejected row for each that micro_batch counts
# Fields of a request that only some styles have a use for, and those styles.
OF_STYLES: dict[str, tuple[str, ...]] = {
    "num_labels": (CLASSIFICATION,),
    "reference": WITH_REFERENCE,
    "prompt_len": (DPO, GRPO),
    "completion_len": (DPO, GRPO),
    "num_generations": (GRPO,),
}
MOST_GENERATIONS = 8  # TRL's own default
DEFAULT_NUM_LABELS = 2  # transformers' own
# What peft saves whole of a sequence classifier, beside what it is asked to. Source: peft-seq-cls.
SAVED_OF_A_CLASSIFIER = ("classifier", "score")


def filled_style(request: Request, method: Any, seq_len: int) -> dict[str, Any]:
    """Defaults of the fields that only some styles have; a field of another style is refused."""
    for name, styles in OF_STYLES.items():
        if getattr(request, name) is not None and request.style not in styles:
            flag = f"--{name.replace('_', '-')}"
            raise BadInput(
                f"{flag} is of --style {', '.join(styles)}, and --style is {request.style}; "
                "leave one of the two out"
            )
    if request.style != NEXT_TOKEN and request.loss != "standard":
        raise BadInput(
            f"--loss {request.loss} takes the place of the next token's cross-entropy, which --style "
            f"{request.style} does not compute; leave --loss out"
        )
    _check_packing(request)
    if request.style == CLASSIFICATION:
        return {"num_labels": request.num_labels or DEFAULT_NUM_LABELS}
    filled: dict[str, Any] = {}
    if request.style in WITH_REFERENCE and (request.style != GRPO or request.reference is not None):
        filled["reference"] = _reference(request, method)
    if request.style in OF_STYLES["completion_len"]:
        filled |= _lengths(request, seq_len)
    if request.style in OF_STYLES["num_generations"]:
        filled["num_generations"] = _num_generations(request)
    if request.style == KTO and request.micro_batch == 1:
        raise BadInput(
            "--style kto takes the completions of a micro-batch's other prompts for its baseline, and "
            "--micro-batch is 1; give 2 or more"
        )
    return filled


def _reference(request: Request, method: Any) -> str:
    """What the policy is held against: without adapters there is nothing to switch off."""
    adapters = method.frozen_base and getattr(method, "trained", None) is None
    if request.reference == "precomputed" and request.style in OF_STYLES["num_generations"]:
        raise BadInput(
            f"--reference precomputed: completions of --style {request.style} are generated as it trains; take "
            "adapter-off or model"
        )
    if request.reference == "adapter-off" and not adapters:
        raise BadInput(
            f"--reference adapter-off: --method {method.name} has no adapters to switch off; take --reference "
            "model or precomputed"
        )
    return request.reference or ("adapter-off" if adapters else "model")


def _lengths(request: Request, seq_len: int) -> dict[str, int]:
    """Tokens of prompt, completion and both: two give the third; half of a sequence is its completion."""
    prompt, completion = request.prompt_len, request.completion_len
    if prompt is not None and completion is not None:
        if request.seq_len not in (None, prompt + completion):
            raise BadInput(
                f"--prompt-len {prompt} and --completion-len {completion} make {prompt + completion} tokens, and "
                f"--seq-len is {request.seq_len}; leave one of the three out"
            )
        seq_len = prompt + completion
    elif prompt is not None:
        completion = seq_len - prompt
    elif completion is None:
        completion = max(seq_len // 2, 1)
    if not 0 < completion < seq_len:
        named = f"--prompt-len {prompt}" if prompt is not None else f"--completion-len {completion}"
        raise BadInput(
            f"{named} leaves no token of a sequence of {seq_len} for the other part; give less, or a longer "
            "--seq-len"
        )
    return {"seq_len": seq_len, "prompt_len": seq_len - completion, "completion_len": completion}


def _num_generations(request: Request) -> int:
    """Completions of each prompt: a whole number of prompts is generated for in a step. Source: trl-grpo."""
    step = request.micro_batch * request.grad_accum * request.gpus
    if step == 1:
        raise BadInput(
            "--style grpo holds completions of one prompt against one another, and a step has one; give "
            "--micro-batch 2 or more"
        )
    asked = request.num_generations
    if asked is not None and step % asked:
        raise BadInput(
            f"--num-generations {asked} does not divide the {step} completions of a step (micro-batch x "
            "grad-accum x gpus); give another, or another --micro-batch"
        )
    return asked or next((n for n in range(MOST_GENERATIONS, 1, -1) if step % n == 0), step)


def _check_packing(request: Request) -> None:
    """Refuse a batch that is padded and is not, and rows that a style has to tell apart."""
    if not request.padding_free:
        return
    if request.padding:
        raise BadInput("--padding-free leaves padding out, and --padding asks for it; leave one of the two out")
    if request.style != NEXT_TOKEN:
        raise BadInput(
            f"--padding-free makes one row of a batch, and --style {request.style} needs a row for each sequence; "
            "leave one of the two out"
        )


def style_of(request: Request) -> StyleSpec:
    """The style of a request whose defaults are filled in."""
    return StyleSpec(
        name=request.style,
        rows=2 if request.style in PAIRS else 1,
        reference=request.reference or "none",
        num_labels=request.num_labels or DEFAULT_NUM_LABELS,
        completion_len=request.completion_len or 0,
        generates=request.style == GRPO,
        micro_batches=request.grad_accum if request.style == GRPO else 1,
        evaluation_tokens=request.eval_generate or 0,
    )


def saved_whole(request: Request, takes: tuple[str, ...]) -> tuple[str, ...]:
    """Modules that train whole beside adapters; `takes`: the fields of a request that the method takes."""
    named = tuple(request.modules_to_save)
    if request.style == CLASSIFICATION and "modules_to_save" in takes:
        named += SAVED_OF_A_CLASSIFIER
    return named


def styled(model: ModelSpec, style: StyleSpec) -> ModelSpec:
    """The model with the head that the style trains."""
    if style.name == CLASSIFICATION:
        put_score_head(model, style.num_labels)
    return model


def check_classifier(model: ModelSpec, method: MethodSpec) -> None:
    """Refuse a packed base whose load packs the classifier too. Source: transformers-bnb, peft-seq-cls."""
    if model.scores is not None and method.quant is not None:
        raise BadInput(
            f"--style classification with --quant {method.quant.kind}: a load spares a last module without bias, "
            f"and {model.family}'s classifier has one; packed, peft cannot train it; leave --quant out"
        )


def put_reference(model: ModelSpec, fresh: ModelSpec, method: MethodSpec, style: StyleSpec) -> None:
    """Give the trained model its reference: the same base as it stands, or one that is loaded a second time.

    The second one is loaded and packed as the first, and not prepared for training; its weights ask for gradients
    that nobody computes, so that autocast keeps their casts to the end of a pass. Source: trl-dpo.
    """
    stands = style.reference == "model"
    freeze(fresh, replace(method, kbit_prepare=False, trl_casts=False) if stands else method)
    if stands:
        for _, parameter, _ in fresh.parameters():
            if parameter.role == "weight" and parameter.quant is None:
                parameter.role = "reference"
    model.reference, model.reference_stands = fresh, stands


_WHOLE_LOGITS = (
    "logits are whole, with a copy of them and what their log-softmax keeps, and metrics are computed of them, as "
    "in TRL 1.4; later releases compute log-probabilities in chunks and hold less"
)
_STYLE_NOTES = {
    CLASSIFICATION: "classification: the score head reads every position; beside adapters it trains whole, as peft "
    "saves it",
    DPO: "dpo: a micro-batch counts pairs, of two rows each; dropout is off",
    ORPO: "orpo: a micro-batch counts pairs, of two rows each; no reference; dropout is off",
    KTO: "kto: half of a micro-batch is taken as wanted; two passes more, of policy and reference, over mismatched "
    "completions; dropout is off",
    GRPO: "grpo: a micro-batch counts completions; those of a whole step are generated at once by transformers' "
    "generate, each to its full length; vLLM and reward models are not included, nor what a growing cache leaves "
    "in the allocator's",
}
_REFERENCE_NOTES = {
    "adapter-off": "reference: the base with its adapters off, a pass without a graph beside the policy's",
    "model": "reference: a second model of the same size stands on the device",
    "precomputed": "reference: log-probabilities computed before the run, in passes that are not counted here",
}


_EVALUATION = (
    "evaluation: {} sequences, behind each of which {} tokens are generated with a cache of keys and values; its "
    "memory is counted, its time is not"
)


def style_notes(request: Request) -> list[str]:
    """What a style and a batch without padding take for granted; the request has its defaults filled in."""
    notes = []
    if request.style in _STYLE_NOTES:
        notes.append(_STYLE_NOTES[request.style])
    if request.reference is not None:
        notes.append(_REFERENCE_NOTES[request.reference])
    elif request.style in WITH_REFERENCE:
        notes.append("reference: none, as TRL's default; --reference adapter-off or model adds its pass")
    if request.style in (DPO, ORPO, KTO, GRPO):
        notes.append(_WHOLE_LOGITS)
    if request.eval_generate is not None:
        notes.append(_EVALUATION.format(request.micro_batch, request.eval_generate))
    if request.padding_free:
        notes.append(_packing_note(request))
    return notes


def _packing_note(request: Request) -> str:
    """How sequences of one row are kept apart."""
    tokens = request.micro_batch * (request.seq_len or 0)
    text = f"padding-free: one row of {tokens:,} tokens"
    if request.attention == "flash":
        return f"{text}, told apart by the kernel for ragged batches"
    return f"{text}, told apart by a mask of {tokens:,} x {tokens:,}; --attention flash needs none"
