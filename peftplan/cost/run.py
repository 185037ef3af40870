"""Seconds of a whole run from those of a step: training, and what stands around it.

Legend: T = seconds without interruptions, M = mean seconds between two interruptions, L = what one loses.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

from peftplan.units import HOUR_S, MIB

# What a general-purpose cloud disk reads and writes unless more is paid for [bytes/s]. Source: aws-gp3.
DISK_BYTES_PER_S = 125 * MIB
# Until an interrupted machine is replaced and the process runs again. Source: restart-time.
RESTART_S = 600.0
# Mean time between interruptions of a spot GPU [hours]. Long: Google's preemptible machines live 24 h at most.
# Short: one V100 of AWS was interrupted 10 times in the first 47.3 h of a recorded week, 43.7 h of them running.
# The middle is their geometric mean. An assumption: no provider states it. Source: spot-traces, gcp-preemptible.
SPOT_LIFETIME_LONG_H = 24.0
SPOT_LIFETIME_SHORT_H = 43.7 / 10
SPOT_LIFETIME_H = sqrt(SPOT_LIFETIME_LONG_H * SPOT_LIFETIME_SHORT_H)
# What a GPU draws in training, of its rated power: 0.76 of the rating was measured of a node of eight H100 under
# heavy load, here taken of the GPU alone. Source: training-power.
POWER_FRAC = 0.76


@dataclass(frozen=True, slots=True)
class Run:
    """What a run does.

    A step computes `computed_frac` of its full tokens; `fixed_s` of its seconds do not depend on that (the update,
    communication). One evaluation takes `eval_steps` steps' tokens through the forward pass, `forward_frac` of the
    rest of a step.
    """

    num_steps: int
    computed_frac: float = 1.0
    fixed_s: float = 0.0
    num_evals: int = 0
    eval_steps: float = 0.0
    forward_frac: float = 1 / 3
    save_every: int | None = None  # steps; None: once, at the end
    checkpoint_bytes: int = 0
    load_bytes: int = 0


def run_seconds(run: Run, step_s: float, scale: float = 1.0, lifetime_s: float | None = None) -> dict[str, float]:
    """Seconds of a run's parts, by name; a part that takes none is left out.

    `scale`: how many tokens there are, of those that were counted; `lifetime_s`: mean time between interruptions,
    None for a machine that is never taken away. An interruption loses L = restart + load + half of the time
    between checkpoints, and comes on average every M: T' = T / (1 - L / M); ValueError where that never ends.

    Source: young-checkpoint.
    """
    moving_s = max(0.0, step_s - run.fixed_s)
    fixed_s = step_s - moving_s
    training_s = run.num_steps * (fixed_s + moving_s * run.computed_frac * scale)
    save_s = run.checkpoint_bytes / DISK_BYTES_PER_S
    load_s = run.load_bytes / DISK_BYTES_PER_S
    saves = ceil(run.num_steps / run.save_every) if run.save_every else 1
    parts = {
        "start": load_s,
        "training": training_s,
        "evaluation": run.num_evals * run.eval_steps * moving_s * run.forward_frac,
        "checkpoints": saves * save_s,
    }
    if lifetime_s is not None:
        total = sum(parts.values())
        lost_s = RESTART_S + load_s + total / saves / 2
        if lost_s >= lifetime_s:
            raise ValueError(f"an interruption every {lifetime_s / HOUR_S:.1f} h loses {lost_s / HOUR_S:.1f} h")
        parts["interruptions"] = total / (1 - lost_s / lifetime_s) - total
    return {name: seconds for name, seconds in parts.items() if seconds > 0}


def best_save_every(run: Run, step_s: float, lifetime_s: float) -> int:
    """Steps between checkpoints that lose least to interruptions and to saving: sqrt(2 save M) seconds.

    Source: young-checkpoint.
    """
    between_s = sqrt(2 * lifetime_s * run.checkpoint_bytes / DISK_BYTES_PER_S)
    computed_s = run.fixed_s + max(0.0, step_s - run.fixed_s) * run.computed_frac
    return max(1, min(run.num_steps, int(between_s / computed_s))) if computed_s > 0 else run.num_steps


def forward_share(frozen_base: bool, checkpointing: bool) -> float:
    """The forward pass's share of a step: 2 of 6 flop a parameter and token, of 4 where weights are frozen.

    Recomputation adds 2. Source: scaling-laws.
    """
    backward = 2 if frozen_base else 4
    return 2 / (2 + backward + (2 if checkpointing else 0))


def energy_kwh(tdp_w: float, num_gpus: int, hours: float, power_w: float | None = None) -> float:
    """Energy of the GPUs alone: neither host nor cooling; measured power first, else a share of the rated one."""
    return (power_w if power_w is not None else tdp_w * POWER_FRAC) * num_gpus * hours / 1000
