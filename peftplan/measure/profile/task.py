"""What the child process is told to measure: plain values, written as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from peftplan.measure.trace.job import Job

DEFAULT_WARMUP = 2
DEFAULT_STEPS = 5
MAX_STEPS = 10_000


@dataclass(frozen=True, slots=True)
class Task:
    """One run to be measured."""

    job: Job
    weights: str | None = None  # a folder with safetensors; None: random weights
    num_warmup: int = DEFAULT_WARMUP
    num_steps: int = DEFAULT_STEPS

    def to_json(self) -> str:
        """As one line of JSON."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in ("weights", "num_warmup", "num_steps")}
        return json.dumps({**fields, "job": asdict(self.job)})

    @classmethod
    def from_json(cls, text: str) -> Task:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        fields["job"] = Job.from_json(json.dumps(fields["job"]))
        return cls(**fields)
