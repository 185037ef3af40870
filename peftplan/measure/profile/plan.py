"""From a request and a device to a task: the trace's plan, on real tensors. No torch here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peftplan.catalog import find_gpu
from peftplan.catalog.lookup import cached_snapshot
from peftplan.errors import BadInput, NotFound
from peftplan.measure.profile.task import Task
from peftplan.measure.trace.plan import TracePlan, plan_trace
from peftplan.request import Request
from peftplan.resolve import REFERENCE_GPU
from peftplan.specs.style import NEXT_TOKEN
from peftplan.versions import LIBRARIES, installed_versions

CUDA, CPU = "cuda", "cpu"
RANDOM, REAL = "random", "real"
_DIGEST_LENGTH = 10
_NOT_THE_RUN = ("gpu", "engine", "model")  # fields that do not change what is carried out


# What random weights are packed as: by bitsandbytes, whose kernels are there.
_MADE = ("nf4", "fp4", "int8")


@dataclass(frozen=True, slots=True)
class Planned:
    """A run that can be carried out: what to predict, what to measure, and under which name it is recorded."""

    plan: TracePlan
    task: Task
    device: str
    gpu: str  # name of the device as it calls itself

    @property
    def request(self) -> Request:
        """The request as it is recorded: every default filled in; a config that is no catalogue's goes along."""
        found = self.plan.found
        model = found.id if found.in_catalogue else dict(found.config)
        return self.plan.request.model_copy(update={"model": model})

    @property
    def key(self) -> str:
        """Equal for runs of one configuration on one kind of device."""
        request = self.plan.request.model_dump(mode="json")
        told = {name: value for name, value in request.items() if name not in _NOT_THE_RUN}
        weights = REAL if self.task.weights is not None else RANDOM
        text = json.dumps([self.plan.found.key(), told, self.gpu, weights], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]

    @property
    def name(self) -> str:
        """What its record is called, without an end: stable, and telling."""
        asked = self.plan.request
        model = Path(self.plan.found.id).stem if Path(self.plan.found.id).is_absolute() else self.plan.found.id
        size = f"b{asked.micro_batch}-s{asked.seq_len}"
        return "-".join([slug(self.gpu), slug(model.rpartition("/")[2]), slug(asked.method), size, self.key])


def slug(text: str) -> str:
    """A text as part of a file's name: `NVIDIA H200` as `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "none"


def plan_run(
    request: Request,
    device: str,
    hardware: Mapping[str, Any] | None,
    weights: str = RANDOM,
    num_warmup: int | None = None,
    num_steps: int | None = None,
) -> Planned:
    """Fill in defaults and refuse what cannot be carried out; without `hardware` the request's own GPU is meant."""
    if request.style != NEXT_TOKEN or request.padding_free:
        asked = "--padding-free" if request.padding_free else f"--style {request.style}"
        raise BadInput(f"{asked}: a profile carries out next-token training on whole sequences; leave it out")
    if request.loss == "fused":
        raise BadInput("--loss fused is Liger's kernel, which a profile does not run; take standard or chunked")
    if request.gpu is None and device == CUDA and hardware is not None:
        record = find_gpu(hardware["gpu"])
        request = request.model_copy(update={"gpu": record.key if record is not None else None})
    plan = plan_trace(_with_installed(request) if hardware is not None else request)
    packed = plan.job.quantization
    if packed is not None and packed.kind not in _MADE:
        raise BadInput(
            f"--quant {packed.kind}: a profile makes random weights packed as {', '.join(_MADE)} only; take one of "
            "these"
        )
    capability = (hardware or {}).get("compute_capability")
    job = replace(
        plan.job,
        device=device,
        num_micro_steps=plan.request.grad_accum,
        compute_capability=tuple(capability) if capability else plan.job.compute_capability,
    )
    counts = {"num_warmup": num_warmup, "num_steps": num_steps}
    task = Task(
        job,
        weights_folder(plan) if weights == REAL else None,
        **{name: count for name, count in counts.items() if count is not None},
    )
    gpu = hardware["gpu"] if hardware is not None else plan.request.gpu or REFERENCE_GPU
    return Planned(plan, task, device, "CPU" if device == CPU else gpu)


def _with_installed(request: Request) -> Request:
    """The request for the libraries that will run: their versions where none are stated."""
    known = installed_versions(found_versions(LIBRARIES))
    return request.model_copy(update={name: text for name, text in known.items() if getattr(request, name) is None})


def found_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the installed libraries among these."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def weights_folder(plan: TracePlan) -> str:
    """The local folder that holds the model's safetensors: the one given, or the Hub cache's."""
    asked = plan.request.model
    name = asked if isinstance(asked, str) else ""
    folder = Path(name).expanduser() if name else None
    if folder is None or not folder.is_dir():
        folder = cached_snapshot(plan.found.id)
    if folder is None or not any(folder.glob("*.safetensors")):
        raise NotFound(
            f"--weights real: no safetensors of {plan.found.id} in a local folder or the Hub cache; "
            "fetch them, or leave --weights out (memory and time do not depend on values)"
        )
    return str(folder.resolve())
