"""The process in which a run is measured: it answers on what was stdout, line by line, and ends with its parent.

The first line in says which device; the answer is `device {facts}` or `error {…}`. Each further line is a task;
answers are `progress [done, label]` any number of times, then `measured {…}` or `error {…}`.
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
from typing import Any, BinaryIO

from peftplan.errors import PeftplanError
from peftplan.measure.profile.task import Task
from peftplan.measure.trace.child import UNEXPECTED, _error, _read, _send, _where

_PROGRESS_EVERY_S = 0.1


def main() -> None:
    """Answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    device: Any = None
    while True:
        line = lines.get()
        try:
            if device is None:
                from peftplan.measure.profile.device import open_device

                device = open_device(json.loads(line)["device"])
                word, text = "device", json.dumps(device.facts())
            else:
                word, text = "measured", json.dumps(_measure(Task.from_json(line), device, answers))
        except PeftplanError as error:
            word, text = "error", _error(type(error).__name__, str(error))
        except Exception as error:  # noqa: BLE001 - whatever a library raises is told
            traceback.print_exc()
            word, text = "error", _error(UNEXPECTED, f"{type(error).__name__}: {error}{_where(error)}")
        sys.stderr.flush()
        _send(answers, word, text)


def _measure(task: Task, device: Any, answers: BinaryIO) -> dict[str, Any]:
    _send(answers, "progress", json.dumps([0.0, "loading transformers"]))
    import transformers

    transformers.logging.set_verbosity_error()
    from peftplan.measure.profile.runner import measure

    last = 0.0

    def progress(done: float, label: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_EVERY_S:
            last = now
            _send(answers, "progress", json.dumps([done, label]))

    return measure(task, device, progress)


if __name__ == "__main__":
    main()
