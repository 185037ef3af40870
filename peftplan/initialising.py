"""What a method computes once before training, as the report tells it."""

from __future__ import annotations

from peftplan.catalog import GpuRecord
from peftplan.cost.rates import rates
from peftplan.memory.initialise import beside_the_model
from peftplan.report import InitialisationFacts
from peftplan.specs.model import ModelSpec
from peftplan.specs.run import StepSpec
from peftplan.units import format_bytes


def initialisation_of(
    model: ModelSpec, step: StepSpec, gpu: GpuRecord | None, loaded_bytes: int
) -> InitialisationFacts | None:
    """Bytes beside the loaded model, flop, and seconds at the card's best; None where nothing is computed."""
    found = model.initialisation
    if found is None:
        return None
    beside_bytes, num_flop = beside_the_model(found, step.micro_batch * step.seq_len)
    rate = rates(gpu).flop.get("fp32") if gpu is not None else None
    return InitialisationFacts.model_construct(
        reads=found.reads,
        beside_bytes=beside_bytes,
        peak_allocated_bytes=loaded_bytes + beside_bytes,
        num_flop=float(num_flop),
        least_s=num_flop / rate if rate else None,
        disk_bytes=found.disk_bytes,
        disk=found.disk,
    )


def initialisation_notes(found: InitialisationFacts | None) -> tuple[str, ...]:
    """What is to be said of it beside a run."""
    if found is None:
        return ()
    seconds = "" if found.least_s is None else f", no less than {found.least_s:.3g} s"
    passes = "" if found.reads == "weights" else ", and what passes of the model hold meanwhile"
    disk = f"; on disk {format_bytes(found.disk_bytes)} for {found.disk}" if found.disk_bytes else ""
    beside = f"{format_bytes(found.beside_bytes)} beside the model at most{passes}"
    work = f"{found.num_flop:.2g} flop of factorisations{seconds}"
    return (f"before training, from {found.reads}: {beside}; {work}{disk}",)
