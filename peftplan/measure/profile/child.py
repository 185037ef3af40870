"""The process in which a run is measured.

The first line in says which device, and is answered `device {facts}`. Each further line is a task, answered
`measured {…}`.
"""

from __future__ import annotations

import json
from typing import Any

from peftplan.measure.answering import Answers, answer_lines, load_transformers
from peftplan.measure.profile.task import Task


def main() -> None:
    """Answer until stdin ends."""
    answer_lines(_Measuring(), "profile")


class _Measuring:
    """The device, once it is known, and tasks on it."""

    def __init__(self) -> None:
        self.device: Any = None

    def __call__(self, line: str, answers: Answers) -> tuple[str, str]:
        if self.device is None:
            from peftplan.measure.profile.device import open_device

            self.device = open_device(json.loads(line)["device"])
            return "device", json.dumps(self.device.facts())
        task = Task.from_json(line)
        load_transformers(answers)
        from peftplan.measure.profile.runner import measure

        return "measured", json.dumps(measure(task, self.device, answers.progress))


if __name__ == "__main__":
    main()
