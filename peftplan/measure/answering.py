"""The child's side of `process`: questions come in on stdin, answers go out on what was stdout, line by line.

An answer is a word and JSON: `progress [done, label]` any number of times, then what was asked for, or
`error {"kind", "message"}`. Whatever libraries print goes to stderr. The process ends at once when stdin does, in
the middle of its work too, so that it never outlives who started it.
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
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from peftplan.errors import PeftplanError

_PROGRESS_EVERY_S = 0.1
UNEXPECTED = "unexpected"  # an error that is none of peftplan's own


class Answers:
    """Where answers go."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self._last = 0.0

    def send(self, word: str, text: str) -> None:
        """Write one line."""
        self.stream.write(f"{word} {text}\n".encode())
        self.stream.flush()

    def say(self, done: float, label: str) -> None:
        """Tell how far the work is."""
        self.send("progress", json.dumps([done, label]))

    def progress(self, done: float, label: str) -> None:
        """Tell how far the work is, but not all the time."""
        now = time.monotonic()
        if now - self._last >= _PROGRESS_EVERY_S:
            self._last = now
            self.say(done, label)

    def error(self, kind: str, message: str) -> None:
        """Tell that the work failed."""
        self.send("error", json.dumps({"kind": kind, "message": message}))


def answer_lines(answer: Callable[[str, Answers], tuple[str, str]], extra: str) -> None:
    """Answer until stdin ends; `answer` gives the word and its JSON. `extra` is what to install of peftplan."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = Answers(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    while True:
        _answer_one(answer, lines.get(), answers, extra)


def load_transformers(answers: Answers) -> None:
    """Import what takes long, and say so."""
    answers.say(0.0, "loading torch and transformers")
    import transformers

    transformers.logging.set_verbosity_error()


def _read(lines: queue.Queue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _answer_one(answer: Callable[[str, Answers], tuple[str, str]], line: str, answers: Answers, extra: str) -> None:
    try:
        word, text = answer(line, answers)
    except PeftplanError as error:
        sys.stderr.flush()
        answers.error(type(error).__name__, str(error))
    except ImportError as error:
        traceback.print_exc()
        message = f"the installed libraries do not work together ({error}); pip install -U 'peftplan[{extra}]'"
        answers.error("MachineLacks", message)
    except Exception as error:  # noqa: BLE001 - whatever a library raises is told
        traceback.print_exc()
        answers.error(UNEXPECTED, f"{type(error).__name__}: {error}{_where(error)}")
    else:
        sys.stderr.flush()
        answers.send(word, text)


def _where(error: BaseException) -> str:
    """The innermost line of Python that raised it: file and function."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    last = frames[-1]
    return f" (in {last.name}, {'/'.join(Path(last.filename).parts[-3:])}:{last.lineno})"
