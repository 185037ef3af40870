"""From a request to specifications: defaults filled in, contradictions refused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from peftplan.arch import build_model
from peftplan.catalog import GpuRecord, find_gpu, nearest_gpus
from peftplan.catalog.lookup import FoundModel, find_config
from peftplan.errors import BadInput, NotFound
from peftplan.memory.overheads import Context, outside
from peftplan.methods import METHODS, Method, Options
from peftplan.optimizers import by_any_name, canonical
from peftplan.optimizers.asked import Run, optimizer_options, refuse_run
from peftplan.packing import Packing, is_packed, packing_of
from peftplan.request import Request
from peftplan.specs.formats import BF16, FLOAT_DTYPES, FP16, FP32, DType
from peftplan.specs.method import MethodSpec
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.styles import filled_style, saved_whole, style_of, styled
from peftplan.versions import LIBRARIES, Versions, versions_of

DEFAULT_SEQ_LEN = 2048
REFERENCE_GPU = "a100-80"

# What full fine-tuning keeps its weights in, and whether under autocast: (weights, autocast).
FULL_RECIPES: dict[str, tuple[DType, DType | None]] = {
    "bf16": (BF16, None),
    "fp16": (FP16, None),
    "fp32": (FP32, None),
    "bf16-mixed": (FP32, BF16),
    "fp16-mixed": (FP32, FP16),
    "bf16-master": (BF16, None),
}


@dataclass(frozen=True, slots=True)
class PeftMethod:
    """A method of the installed peft under its own name: adapters on a frozen base."""

    name: str
    frozen_base: bool = True
    default_precision: str = "bf16-mixed"
    default_quant: str | None = None
    default_rank: int | None = None
    options: type[Options] = Options


@dataclass(frozen=True, slots=True)
class Settings:
    """A request with every default filled in, and what it stands for, whatever the model is made of."""

    request: Request
    method: MethodSpec
    step: StepSpec
    gpu: GpuRecord | None
    versions: Versions


@dataclass(frozen=True, slots=True)
class Plan:
    """A request with every default filled in, and the specifications it stands for."""

    request: Request
    found: FoundModel
    max_seq_len: int | None
    method: Method
    method_spec: MethodSpec
    step: StepSpec
    gpu: GpuRecord | None
    versions: Versions
    _first: list[ModelSpec] = field(default_factory=list)

    @property
    def model(self) -> ModelSpec:
        """The model as its config has it: another one each time, since a method rewrites what it is given."""
        model = self._first.pop() if self._first else _built(self.found, self.versions)
        return styled(model, self.step.style)


# By model and versions: the positions a model takes, so that it need not be built to be known again.
_LIMITS: OrderedDict[Hashable, int | None] = OrderedDict()
_LIMITS_AT_MOST = 64


def resolve(request: Request) -> Plan:
    """Fill in defaults, refuse contradictions, find the model and the GPU, and build both specs."""
    method = choose("--method", request.method, METHODS)
    found = find_requested(request.model)
    versions = requested_versions(request)
    key, first = (found.key(), versions), []
    if key not in _LIMITS:
        first.append(_built(found, versions))
        _LIMITS[key] = first[0].max_seq_len
        while len(_LIMITS) > _LIMITS_AT_MOST:
            _LIMITS.popitem(last=False)
    made = settle_fields(request, method, _LIMITS[key], found.config)
    return Plan(made.request, found, _LIMITS[key], method, made.method, made.step, made.gpu, versions, first)


def _built(found: FoundModel, versions: Versions) -> ModelSpec:
    return build_model(found.config, f"config of {found.id}", versions)


def settle_fields(
    request: Request, method: Method | PeftMethod, max_seq_len: int | None, config: Mapping[str, Any] | None = None
) -> Settings:
    """Fill in defaults and refuse contradictions of a run whose model takes at most so many positions."""
    gpu = _find_gpu(request.gpu) if request.gpu is not None else None
    packing = packing_of(request, method, config or {}, capability_of(gpu))
    filled = _fill(request, method, max_seq_len, packing)
    optimizer = choose("--optimizer", filled.optimizer or "", by_any_name(), "all: `peftplan optimizers`")
    options = optimizer_options(optimizer, filled.optimizer_options, config or {}, filled.loop == "trainer")
    filled = filled.model_copy(update={"optimizer_options": dict(options)})
    in_backward, masters = filled.optimizer_in_backward, filled.precision == "bf16-master"
    refuse_run(optimizer, options, Run(in_backward, filled.grad_accum, filled.gpus, masters))
    weights, autocast = _formats(filled, method)
    spec = MethodSpec(
        rank=filled.rank,
        dropout=filled.dropout,
        targets=filled.targets if isinstance(filled.targets, str) else tuple(filled.targets),
        bias=filled.bias if "bias" in getattr(method, "takes", ("bias",)) else "none",
        modules_to_save=saved_whole(filled, getattr(method, "takes", ())),
        adapter_dtype=FLOAT_DTYPES[filled.adapter_dtype],
        base_dtype=weights,
        quant=packing.format,
        quant_skips=packing.skips,
        loaded_from=packing.loaded_from,
        base_notes=packing.notes,
        kbit_prepare=bool(filled.kbit_prepare),
        trl_casts=filled.trl_casts,
        options=method_options(method, filled.method_options),
    )
    step = StepSpec(
        micro_batch=filled.micro_batch,
        seq_len=filled.seq_len or DEFAULT_SEQ_LEN,
        checkpointing=filled.checkpointing,
        autocast=autocast,
        attention=filled.attention,
        loss=filled.loss,
        trainer=filled.loop == "trainer",
        accumulating=filled.grad_accum > 1,
        master_weights=masters,
        optimizer=optimizer.name,
        optimizer_options=options,
        optimizer_in_backward=in_backward,
        compute_capability=capability_of(gpu),
        padding=filled.padding,
        use_reentrant=filled.use_reentrant,
        keep_outputs=filled.keep_outputs,
        style=style_of(filled),
        padding_free=filled.padding_free,
        data_parallel=filled.gpus > 1,
        num_batches=filled.grad_accum if filled.loop == "trainer" else 1,
    )
    return Settings(filled, spec, step, gpu, requested_versions(request))


def requested_versions(request: Request) -> Versions:
    """The library releases that a request states, the reference's for the rest."""
    return versions_of({name: getattr(request, name) for name in LIBRARIES})


def choose(option: str, name: str, table: dict[str, Any], where: str = "") -> Any:
    """A row by name, case and underscores apart; an unknown name lists what there is, or says where that stands."""
    key = name.strip().lower().replace("_", "-")
    if key in table:
        return table[key]
    from difflib import get_close_matches  # only a typo pays for its import

    near = get_close_matches(key, table, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise BadInput(f"{option} {name!r} is unknown; {where or 'there are ' + ', '.join(table)}{hint}")


def find_requested(model: str | dict[str, Any]) -> FoundModel:
    """The model that a request names, or brings along as a mapping."""
    if isinstance(model, str):
        return find_config(model)
    name = model.get("_name_or_path") or model.get("model_type")
    name = name if isinstance(name, str) else "a mapping"
    return FoundModel(name, model, "config given as a mapping")


def _find_gpu(name: str) -> GpuRecord:
    gpu = find_gpu(name)
    if gpu is None:
        near = nearest_gpus(name)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise NotFound(f"--gpu {name!r} is not in the catalogue{hint} (all: `peftplan gpus`)")
    return gpu


def capability_of(gpu: GpuRecord | None) -> tuple[int, int]:
    """The GPU's generation; without a GPU, or without CUDA, the reference GPU's."""
    for record in (gpu, find_gpu(REFERENCE_GPU)):
        if record is not None and record.compute_capability is not None:
            return record.compute_capability
    raise NotFound(f"the catalogue holds no CUDA record for {REFERENCE_GPU}; reinstall peftplan")


def _fill(request: Request, method: Method | PeftMethod, max_seq_len: int | None, packing: Packing) -> Request:
    """The request with defaults that depend on other fields or on the model."""
    optimizer = request.optimizer
    if optimizer is None:
        optimizer = "adamw-fused" if request.loop == "trainer" else "adamw"
    prepare = request.kbit_prepare
    if prepare is None:
        prepare = method.default_quant is not None and packing.format is not None
    if request.keep_outputs and request.loop == "trainer":
        raise BadInput("--keep-outputs is of a loop that names them; Trainer drops them; leave one of the two out")
    if request.use_reentrant and not request.checkpointing:
        raise BadInput(
            "--use-reentrant names a kind of gradient checkpointing, and --no-checkpointing turns that off; "
            "leave one of the two out"
        )
    if request.sharding == "ddp" and request.gpus == 1:
        raise BadInput("--sharding ddp spreads a batch over several GPUs, and --gpus is 1; give --gpus 2 or more")
    limit = max_seq_len or DEFAULT_SEQ_LEN
    precision = request.precision or method.default_precision
    base = request.base_dtype
    if base is None:
        base = FULL_RECIPES[precision][0].short if not method.frozen_base else "bf16"  # type: ignore[assignment]
    rank = method.default_rank if method.default_rank and "rank" not in request.model_fields_set else request.rank
    return request.model_copy(
        update={
            "method": method.name,
            "seq_len": request.seq_len or min(DEFAULT_SEQ_LEN, limit),
            "rank": rank,
            "alpha": request.alpha if request.alpha is not None else 2.0 * rank,
            "method_options": dict(method_options(method, request.method_options)),
            "precision": precision,
            "base_dtype": base,
            **packing.fields,
            "kbit_prepare": prepare,
            "sharding": "ddp" if request.gpus > 1 else request.sharding,
            "optimizer": canonical(optimizer),
            **filled_style(request, method, request.seq_len or min(DEFAULT_SEQ_LEN, limit)),
            **requested_versions(request).by_name(),
        }
    )


def method_options(method: Method | PeftMethod, given: dict[str, Any]) -> Options:
    """The options of one method alone; what it does not have or take is refused with what it has."""
    try:
        return method.options.model_validate({name.replace("-", "_"): value for name, value in given.items()})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, known = str(first["loc"][0]), method.options.model_fields
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has no options of its own"
            raise BadInput(f"--method-option {name} is none of --method {method.name}; {has}") from None
        told = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        raise BadInput(f"--method-option {name}={first['input']} is not allowed; it {told}") from None


def _formats(request: Request, method: Method | PeftMethod) -> tuple[DType, DType | None]:
    """Format of the base's weights and autocast's format; contradictions are refused."""
    precision = request.precision or method.default_precision
    weights, autocast = FULL_RECIPES[precision]
    base = FLOAT_DTYPES[request.base_dtype or weights.short]
    if request.trl_casts and (not method.frozen_base or request.quant not in ("nf4", "fp4")):
        raise BadInput("--trl-casts are of a model packed in 4 bits; use --method qlora, or leave them out")
    if method.frozen_base:
        if precision == "bf16-master":
            raise BadInput(
                "--precision bf16-master keeps fp32 masters of all weights, but "
                f"--method {method.name} freezes them; use bf16 or bf16-mixed"
            )
        if request.kbit_prepare and not is_packed(request.quant):
            raise BadInput(
                "--kbit-prepare prepares a quantised base, and none is asked for; add --quant nf4 "
                "or use --method qlora"
            )
        return base, autocast
    if base is not weights:
        raise BadInput(
            f"--precision {precision} with full fine-tuning keeps weights in {weights.short}, but "
            f"--base-dtype is {base.short}; leave --base-dtype out or choose another recipe"
        )
    if is_packed(request.quant):
        raise BadInput(
            f"--quant {request.quant} packs frozen weights, but --method full trains them; use --method qlora"
        )
    if request.kbit_prepare:
        raise BadInput("--kbit-prepare freezes the base, but --method full trains it; leave it out")
    return weights, autocast


def outside_allocator(request: Request, gpu: GpuRecord | None, step: StepSpec) -> Context:
    """What a process of this run holds on its GPU beside torch's allocator; without a GPU, on the reference one."""
    card = gpu or find_gpu(REFERENCE_GPU)
    return outside(step.compute_capability, request.gpus, card is not None and card.switched)
