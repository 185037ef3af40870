"""The README's table of step time: errors of what was left out of the fit, beside those that others publish."""

from __future__ import annotations

from collections.abc import Iterator

from peftplan.catalog import find_gpu
from peftplan.catalog.step_time_fit import StepTimeFit

# What other predictors of training time say of themselves: name, basis, mean, worst.
PEERS: tuple[tuple[str, str, str, str], ...] = (
    ("Calculon", "Megatron pretraining of 22B to 1T on A100, its own validation run again", "3.65%", "8.87%"),
    ("NeuSight", "training steps on H100, A100 and L4, its published table of 26 cases", "7.3%", "27.9%"),
    ("a plain roofline", "the same 26 cases, by NeuSight's authors", "31.9%", "52.9%"),
    ("vTrain", "pretraining on one node and on several, secondary source", "8.37%, 14.73%", "-"),
    ("arXiv:2509.22832", "operator-level model, A100 and GH200, its abstract", "4.98%, 9.38%", "-"),
)


def time_table(fit: StepTimeFit) -> str:
    """One line for each group that was left out, and one for each peer."""
    return "\n".join(_lines(fit))


def _lines(fit: StepTimeFit) -> Iterator[str]:
    yield "| left out of the fit | measured on | configurations | mean error | median | worst |"
    yield "|---|---|---|---|---|---|"
    for gpu, errors in sorted(fit.models_left_out.items()):
        if len(errors) > 2:  # the card has several models
            for name, found in _ordered(errors):
                left = "each model in turn" if name == "all" else f"`{name.rpartition('/')[2]}`"
                yield _line(left, _name(gpu), found)
    balanced = [errors["mean_abs_error"] for name, errors in fit.gpus_left_out.items() if name != "all"]
    for name, found in _ordered(fit.gpus_left_out):
        if name == "all":
            yield _line("each GPU in turn", "all", found)
            mean = sum(balanced) / len(balanced)
            yield f"| each GPU in turn, all weighing alike | all | {len(balanced)} GPUs | {mean:.1%} | - | - |"
        else:
            yield _line(f"`{name}`", _name(name), found)
    for name, basis, mean_error, worst in PEERS:
        yield f"| *{name}* | {basis} | - | {mean_error} | - | {worst} |"


def _ordered(errors: dict[str, dict[str, float]]) -> list[tuple[str, dict[str, float]]]:
    """All first, then by name."""
    return sorted(errors.items(), key=lambda item: (item[0] != "all", item[0].lower()))


def _line(left: str, where: str, found: dict[str, float]) -> str:
    sizes = " | ".join(f"{found[f'{name}_abs_error']:.1%}" for name in ("mean", "median", "worst"))
    return f"| {left} | {where} | {found['configurations']:.0f} | {sizes} |"


def _name(key: str) -> str:
    record = find_gpu(key)
    return record.name if record is not None else key
