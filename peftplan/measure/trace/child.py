"""The process in which traces run: `trace {job}` is answered `recording {…}`, `blocks {job}` `blocks {…}`."""

from __future__ import annotations

import json

from peftplan.measure.answering import Answers, answer_lines, load_transformers
from peftplan.measure.trace.job import Job


def main() -> None:
    """Answer jobs until stdin ends."""
    answer_lines(_answer, "trace")


def _answer(line: str, answers: Answers) -> tuple[str, str]:
    asked, _, rest = line.partition(" ")
    job = Job.from_json(rest)
    load_transformers(answers)
    if asked == "blocks":
        from peftplan.measure.trace.blocks import block_kinds

        return "blocks", json.dumps(block_kinds(job))
    if job.after:
        from peftplan.measure.trace.merging import run_merge

        return "recording", run_merge(job, answers.progress).to_json()
    from peftplan.measure.trace.runner import run

    return "recording", run(job, answers.progress).to_json()


if __name__ == "__main__":
    main()
