"""How a run's hours, dollars and energy come about: each figure with its formula, its numbers and its source."""

from __future__ import annotations

from collections.abc import Iterator

from peftplan.render.quantities import Quantity
from peftplan.report import Cost, Report, Time

_GROUP = "What the run costs"
# What a part of the hours is, and the source of its formula.
_PARTS = {
    "start": ("the base from the disk, 125 MiB/s", "aws-gp3"),
    "evaluation": ("the forward pass over the evaluation's tokens, by its share of a step's flop", "scaling-laws"),
    "checkpoints": ("what trains and its optimizer states to the disk, 125 MiB/s, for each checkpoint", "aws-gp3"),
    "interruptions": (
        "T / (1 - L / M) - T: T the parts above, M between interruptions, L a restart and half of what is unsaved",
        "young-checkpoint",
    ),
}


def cost_quantities(report: Report) -> Iterator[Quantity]:
    """The figures of a report's cost, in the order in which one follows from another."""
    cost, time = report.cost, report.time
    if cost is None or time is None:
        return
    yield _quantity("steps", cost.num_steps, "steps", "optimizer steps", _steps(report, cost))
    for name, hours in cost.parts.items():
        if name == "training":
            yield _quantity(name, hours, "h", "", _training(cost, time))
        else:
            meaning, source = _PARTS[name]
            yield _quantity(name, hours, "h", meaning, source=source)
    gpus = report.gpu.num_gpus if report.gpu is not None else 1
    in_all = f"{cost.hours:.4g} h"
    yield _quantity("time", cost.hours, "h", "the sum of the parts")
    yield _quantity("time, low", cost.hours_low, "h", "at the fast end of the step's interval")
    yield _quantity("time, high", cost.hours_high, "h", "at its slow end")
    yield _quantity("cost", cost.usd, "usd", cost.price_source, f"{in_all} x {gpus} x ${cost.usd_per_gpu_hour:.4g}")
    yield _quantity("cost, low", cost.usd_low, "usd", "the low hours at the lowest price")
    yield _quantity("cost, high", cost.usd_high, "usd", "the high hours at the highest price")
    power_w = cost.energy_kwh / (gpus * cost.hours) * 1000 if cost.hours else 0.0
    formula = f"{gpus} x {power_w:.0f} W x {in_all}"
    yield _quantity("energy", cost.energy_kwh, "kWh", "of the GPUs alone", formula, "training-power")


def _quantity(name: str, value: float, unit: str, meaning: str, formula: str = "", source: str = "") -> Quantity:
    return Quantity(_GROUP, name, value, unit, meaning, formula, source)


def _steps(report: Report, cost: Cost) -> str:
    asked = report.request
    rows = f"{asked['micro_batch']} x {asked['grad_accum']} x {asked['gpus']}"
    if cost.data is not None:
        return f"sequences / ({rows})"
    return f"{cost.num_tokens:,} / ({rows} x {asked['seq_len']:,}), rounded up"


def _training(cost: Cost, time: Time) -> str:
    formula = f"{cost.num_steps:,} x {time.step_s:.4g} s"
    if cost.data is not None:
        formula += f", for {cost.data.mean_computed_length:,.0f} tokens a sequence"
    return formula
