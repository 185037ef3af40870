"""From a request to a job: defaults filled in and contradictions refused as the closed form does.

Unlike the closed form, the trace takes every architecture that the installed transformers has, and every
method that the installed peft has: what they refuse, they refuse in the child process. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from peftplan.arch import FAMILIES, build_model
from peftplan.catalog.lookup import FoundModel
from peftplan.errors import BadInput, MachineLacks
from peftplan.measure.trace.configs import max_seq_len, num_layers, text_config, with_layers
from peftplan.measure.trace.job import Job
from peftplan.measure.trace.packed_jobs import quantization_of, with_names
from peftplan.methods import METHODS, Method
from peftplan.methods.targets import listed_names, target_pattern
from peftplan.methods.wrapping import refuse_packed
from peftplan.packing import is_packed
from peftplan.request import Request
from peftplan.resolve import PeftMethod, Settings, choose, find_requested, requested_versions, settle_fields
from peftplan.specs.model import ModelSpec
from peftplan.versions import LIBRARIES, Versions

_PEFT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_\-]{0,39}")
# Fields of a request that a peft config of this kind tells, under its own names.
_TOLD = {
    "lora": {
        "rank": "r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "targets": "target_modules",
        "bias": "bias",
        "modules_to_save": "modules_to_save",
        "use_rslora": "use_rslora",
    }
}
_WORDS = ("all-linear", "attention", "mlp")


@dataclass(frozen=True, slots=True)
class TracePlan:
    """A request with every default filled in, and the job that answers it.

    `model` is the closed form's, before the method; None where it does not know the architecture, and
    `refusal` says why if it knows the family.
    """

    settings: Settings
    found: FoundModel
    method: Method | PeftMethod
    model: ModelSpec | None
    refusal: str
    job: Job
    peft_config: Mapping[str, Any] | None  # given instead of the method's fields
    limit: int | None  # positions that the model takes
    whole_layers: int | None  # blocks before it was cut

    @property
    def request(self) -> Request:
        """The request with every default filled in."""
        return self.settings.request

    def refused(self, words: str) -> str:
        """The closed form's own words for what the libraries refuse with others; empty if it has none."""
        if words.startswith("transformers "):
            return self.refusal
        if self.model is None or not isinstance(self.method, Method) or self.peft_config is not None:
            return ""
        try:
            self.method.apply(self.model, self.settings.method)
        except BadInput as error:
            return str(error)
        return ""

    def notes(self) -> list[str]:
        """What is to be said of the model as it was traced."""
        notes = list(self.settings.method.base_notes)
        layers = num_layers(self.job.config, self.found.id)
        if layers != self.whole_layers:
            notes.append(f"only the first {layers} of {self.whole_layers} blocks were traced (--layers)")
        if self.settings.step.style.generates:
            notes.append("generation is not traced: its moment is left out, and its seconds are the closed form's")
        if self.refusal:
            notes.append(f"the closed form does not take this config: {self.refusal}")
        elif self.model is None:
            notes.append(
                f"the closed form does not know model_type {self.job.config.get('model_type')!r}: no evaluation "
                "pass, no loading"
            )
        return notes


def plan_trace(
    request: Request, peft_config: Mapping[str, Any] | None = None, layers: int | None = None
) -> TracePlan:
    """Fill in defaults and refuse contradictions; the model cut to its first `layers` blocks, if asked."""
    _check_versions(request)
    if peft_config is not None:
        request = _by_peft_config(request, peft_config)
    method = find_method(request.method)
    found = find_requested(request.model)
    where = f"config of {found.id}"
    config = text_config(found.config)
    whole = num_layers(config, where)
    if layers is not None and whole is None:
        raise BadInput(f"--layers {layers}: {where} states no number of layers; leave --layers out")
    if layers is not None and whole is not None and layers < whole:
        config = with_layers(config, layers)
        found = replace(found, config=config, in_catalogue=False)
    model, refusal = _closed_model(found, where, requested_versions(request))
    limit = model.max_seq_len if model is not None else max_seq_len(config)
    settings = settle_fields(request, method, limit, config)
    job = _job(settings, method, config, model, peft_config)
    return TracePlan(settings, found, method, model, refusal, job, peft_config, limit, whole)


def _check_versions(request: Request) -> None:
    """Refuse releases other than the installed ones, which are what runs."""
    for name in LIBRARIES:
        stated, installed = getattr(request, name), installed_version(name)
        if stated is None or installed is None:
            continue
        wanted, found = (text.strip().removeprefix("v").partition("+")[0] for text in (stated, installed))
        if found != wanted and not found.startswith(f"{wanted}."):
            raise MachineLacks(
                f"--{name} {stated}: the trace runs what is installed, {name} {installed}; leave it out, install "
                "that release, or take --engine closed"
            )


def installed_version(name: str) -> str | None:
    """The release of an installed library; None where it is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def find_method(name: str) -> Method | PeftMethod:
    """The method of this name: one that peftplan knows, or else one that the installed peft may have."""
    key = name.strip().lower().replace("_", "-")
    if key not in METHODS and _PEFT_NAME.fullmatch(key):
        return PeftMethod(key)
    found: Method = choose("--method", name, METHODS)
    return found


def _by_peft_config(request: Request, fields: Mapping[str, Any]) -> Request:
    """The request as a peft config has it: the method is the config's, the storage of the base the request's."""
    kind = str(fields["peft_type"]).lower().replace("_", "-")
    asked = find_method(request.method)
    if not asked.frozen_base:
        raise BadInput(
            f"--peft-config puts adapters on a frozen base, and --method {asked.name} trains every weight; "
            "leave one of the two out"
        )
    names = _TOLD.get(kind)
    if names is None:
        prepare = request.kbit_prepare if request.kbit_prepare is not None else asked.default_quant is not None
        quant = request.quant or asked.default_quant
        changed = {"method": kind, "quant": quant, "kbit_prepare": prepare and is_packed(quant)}
        return request.model_copy(update=changed)
    if not isinstance(asked, Method) or asked.peft.get("peft_type") != "LORA":
        raise BadInput(
            f"--peft-config holds a LoRA config, and --method is {asked.name}; leave --method out, or give qlora"
        )
    told = {field: fields.get(name) for field, name in names.items()}
    return request.model_copy(update={field: value for field, value in told.items() if value is not None})


def _closed_model(found: FoundModel, where: str, versions: Versions) -> tuple[ModelSpec | None, str]:
    """The closed form's model, or why it has none although it knows the family."""
    try:
        return build_model(found.config, where, versions), ""
    except BadInput as error:
        known = text_config(found.config).get("model_type") in FAMILIES
        return None, str(error) if known else ""


def _job(
    settings: Settings,
    method: Method | PeftMethod,
    config: dict[str, Any],
    model: ModelSpec | None,
    peft_config: Mapping[str, Any] | None,
) -> Job:
    request, step = settings.request, settings.step
    if isinstance(method, Method) and method.frozen_base and not method.peft and method.trained is None:
        raise BadInput(f"--method {method.name}: peft has no such method to be traced; take --engine closed")
    if not method.frozen_base or (isinstance(method, Method) and not method.peft):
        peft = None
    elif peft_config is not None:
        peft = dict(peft_config)
    else:
        settings = with_names(settings, method, model)
        request = settings.request
        peft = _peft_fields(settings, method)
    return Job(
        config=config,
        peft=peft,
        base_dtype=settings.method.base_dtype.short,
        adapter_dtype=request.adapter_dtype,
        autocast=step.autocast.short if step.autocast is not None else None,
        quantization=quantization_of(settings),
        kbit_prepare=settings.method.kbit_prepare,
        trl_casts=settings.method.trl_casts,
        master_weights=step.master_weights,
        micro_batch=step.micro_batch,
        seq_len=step.seq_len,
        padding=step.padding,
        num_micro_steps=2 if step.accumulating else 1,  # every later one is like the second
        num_batches=step.num_batches,
        checkpointing=step.checkpointing,
        use_reentrant=step.use_reentrant,
        keep_outputs=step.keep_outputs,
        data_parallel=step.data_parallel,
        style=step.style.name,
        num_labels=step.style.num_labels,
        padding_free=step.padding_free,
        rows=step.style.rows,
        reference=step.style.reference,
        completion_len=step.style.completion_len,
        attention=step.attention,
        loss=step.loss,
        trainer=step.trainer,
        optimizer=step.optimizer,
        optimizer_options=request.optimizer_options,
        optimizer_in_backward=step.optimizer_in_backward,
        compute_capability=step.compute_capability,
        peft_hints=_peft_hints(request, method) if peft is not None and peft_config is None else {},
        freezes=method.freezes if isinstance(method, Method) else (),
        trained=_trained(settings, method, model),
        attention_targets=model.attention_targets if model is not None else (),
        mlp_targets=model.mlp_targets if model is not None else (),
    )


def _trained(settings: Settings, method: Method | PeftMethod, model: ModelSpec | None) -> str:
    """Which weights train where the method chooses some; it reads that from the closed form's model."""
    if not isinstance(method, Method) or method.trained is None:
        return ""
    if model is None:
        raise BadInput(
            f"--method {method.name} chooses weights of families that the closed form knows; take another"
        )
    refuse_packed(settings.method, method.name)
    return method.trained(model, settings.method)


def _peft_fields(settings: Settings, method: Method | PeftMethod) -> dict[str, Any]:
    """The fields of peft's config that the request states; other methods take theirs from peft's defaults."""
    request = settings.request
    if not isinstance(method, Method):
        return {"peft_type": method.name.replace("-", "_").upper()}
    fields = {**method.peft, **settings.method.options.peft_fields()}
    if fields["peft_type"] != "LORA":
        return fields
    return {
        "r": request.rank,
        "lora_alpha": request.alpha,
        "lora_dropout": request.dropout,
        "target_modules": target_modules(request.targets),
        "bias": request.bias,
        "modules_to_save": list(request.modules_to_save) or None,
        "use_rslora": request.use_rslora,
        **fields,
    }


def _peft_hints(request: Request, method: Method | PeftMethod) -> dict[str, Any]:
    """What a request says of adapters, for the config classes that have fields for it."""
    if isinstance(method, Method) and method.peft.get("peft_type") == "LORA":
        return {}
    return {
        "rank": request.rank,
        "alpha": request.alpha,
        "dropout": request.dropout,
        "targets": target_modules(request.targets),
        "bias": request.bias,
        "modules_to_save": list(request.modules_to_save),
    }


def target_modules(targets: str | list[str]) -> str | list[str]:
    """Targets as peft takes them: a word, a list of names, or a regular expression of full names."""
    if isinstance(targets, str):
        word = targets.strip().lower()
        if word in _WORDS:
            return word
        names = listed_names(targets)
        if names is None:
            return target_pattern(targets).pattern
        targets = list(names)
    if not targets:
        raise BadInput("--targets is empty; give module names, all-linear, attention or mlp")
    return targets
