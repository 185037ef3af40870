"""The process in which traces run: jobs come in on stdin, answers go out on what was stdout, line by line.

A line is a word and JSON: asked are `trace {job}` and `blocks {job}`, answered `progress [done, label]` any
number of times, then `recording {...}`, `blocks {...}` or `error {"kind", "message"}`. Whatever libraries
print goes to stderr. The process ends at once when stdin does, in the middle of a job too, so that it never
outlives who started it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, BinaryIO

from peftplan.errors import PeftplanError
from peftplan.measure.trace.job import Job

_PROGRESS_EVERY_S = 0.1
UNEXPECTED = "unexpected"  # an error that is none of peftplan's own


def main() -> None:
    """Answer jobs until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    while True:
        _answer(jobs.get(), answers)


def _read(jobs: queue.Queue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


def _answer(line: str, answers: BinaryIO) -> None:
    try:
        asked, _, rest = line.partition(" ")
        word, text = (_blocks if asked == "blocks" else _run)(Job.from_json(rest), answers)
    except PeftplanError as error:
        word, text = "error", _error(type(error).__name__, str(error))
    except ImportError as error:
        traceback.print_exc()
        message = f"the installed libraries do not work together ({error}); pip install -U 'peftplan[trace]'"
        word, text = "error", _error("MachineLacks", message)
    except Exception as error:  # noqa: BLE001 - whatever a library raises is told
        traceback.print_exc()
        word, text = "error", _error(UNEXPECTED, f"{type(error).__name__}: {error}{_where(error)}")
    sys.stderr.flush()
    _send(answers, word, text)


def _blocks(job: Job, answers: BinaryIO) -> tuple[str, str]:
    _load(answers)
    from peftplan.measure.trace.blocks import block_kinds

    return "blocks", json.dumps(block_kinds(job))


def _load(answers: BinaryIO) -> None:
    _send(answers, "progress", json.dumps([0.0, "loading torch and transformers"]))
    import transformers

    transformers.logging.set_verbosity_error()


def _run(job: Job, answers: BinaryIO) -> tuple[str, str]:
    _load(answers)
    from peftplan.measure.trace.runner import run

    last = 0.0

    def progress(done: float, label: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_EVERY_S:
            last = now
            _send(answers, "progress", json.dumps([done, label]))

    return "recording", run(job, progress).to_json()


def _where(error: BaseException) -> str:
    """The innermost line of Python that raised it: file and function."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    last = frames[-1]
    return f" (in {last.name}, {'/'.join(Path(last.filename).parts[-3:])}:{last.lineno})"


def _error(kind: str, message: str) -> str:
    return json.dumps({"kind": kind, "message": message})


def _send(answers: BinaryIO, word: str, text: Any) -> None:
    answers.write(f"{word} {text}\n".encode())
    answers.flush()


if __name__ == "__main__":
    main()
