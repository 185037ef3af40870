"""The lengths of a training set's examples, from its file: JSONL, a JSON array, CSV or Parquet.

Files are read as data, row by row: nothing in them is evaluated, and one of any size needs little memory. A column
of token ids, or of lengths, is counted; text is estimated from its characters.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from peftplan.catalog.datasets_rows import MAX_LINE_BYTES, Counter
from peftplan.errors import BadInput, NotFound, shown
from peftplan.specs.lengths import Lengths
from peftplan.units import GIB, MIB, format_bytes

Progress = Callable[[float, str], None]

# A JSON array has to be held as a whole; lines and columns are read one after the other.
MAX_ARRAY_BYTES = 256 * MIB
# Of a longer file so much is read, in pieces spread over it: lengths then stand for the rest.
MAX_READ_BYTES = GIB
_PIECES = 256
_REPORT_EVERY = 4096  # rows
_PACKED = {b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}
_PARQUET = b"PAR1"


def read_lengths(name: str, chars_per_token: float | None = None, progress: Progress | None = None) -> Lengths:
    """The lengths of a file's examples; read once as long as the file stays as it is.

    `progress` is called while a file is read for the first time.
    """
    path = Path(name).expanduser()
    try:
        status = path.stat()
    except FileNotFoundError:
        raise NotFound(f"--data {shown(name)} does not exist; give a JSONL, CSV or Parquet file") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"--data {shown(name)} cannot be read ({_reason(error)}); give another") from None
    if path.is_dir():
        raise BadInput(f"--data {shown(name)} is a folder; give one file of it (JSONL, CSV or Parquet)")
    if not path.is_file():
        raise BadInput(f"--data {shown(name)} is no ordinary file; give another")
    key = path.absolute(), status.st_mtime_ns, status.st_size, chars_per_token
    found = _KEPT.get(key)
    if found is None:
        try:
            found = _read(path, status.st_size, chars_per_token, progress)
        except OSError as error:
            raise BadInput(f"--data {shown(name)} cannot be read ({_reason(error)}); give another") from None
        if len(_KEPT) >= _KEPT_AT_MOST:
            _KEPT.clear()
        _KEPT[key] = found
    return found


_KEPT: dict[tuple[Path, int, int, float | None], Lengths] = {}
_KEPT_AT_MOST = 8


def _read(path: Path, size: int, chars_per_token: float | None, progress: Progress | None) -> Lengths:
    where = f"--data {shown(str(path))}"
    counter = Counter(chars_per_token)
    if not size:
        raise BadInput(f"{where} is empty; give a file with examples")
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        for sign, kind in _PACKED.items():
            if start.startswith(sign):
                raise BadInput(f"{where} is packed by {kind}; unpack it and give the file inside")
        first = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        if start.startswith(_PARQUET):
            from peftplan.catalog.datasets_parquet import read_parquet

            read_parquet(path, counter, progress)
            share = 1.0
        elif first == b"[":
            _read_array(file, size, where, counter)
            share = 1.0
        elif first == b"{":
            share = _read_lines(file, size, counter, progress)
        else:
            share = _read_csv(file, size, where, counter, progress)
    return counter.lengths(where, share)


# ---- JSON


def _read_lines(file: IO[bytes], size: int, counter: Counter, progress: Progress | None) -> float:
    """A line an example. Of a very long file, pieces spread over it are read; the share that was read."""
    if size <= MAX_READ_BYTES:
        _count_lines(file, size, 0, counter, progress, size)
        return 1.0
    piece, read = MAX_READ_BYTES // _PIECES, 0
    for number in range(_PIECES):
        start = (size - piece) * number // (_PIECES - 1)
        file.seek(start)
        if start:
            _skip_line(file)
        counter.line = 0  # lines are not known from the middle of a file
        read += _count_lines(file, piece, read, counter, progress, MAX_READ_BYTES)
    return min(1.0, read / size)


def _count_lines(
    file: IO[bytes], most: int, before: int, counter: Counter, progress: Progress | None, total: int
) -> int:
    """Examples of about so many bytes; how many were read."""
    read = 0
    while read < most:
        line = file.readline(MAX_LINE_BYTES)
        if not line:
            break
        read += len(line)
        counter.line += 1
        if not line.endswith(b"\n") and len(line) == MAX_LINE_BYTES:
            read += _skip_line(file)
            counter.broken()
        elif line.strip():
            _count_json(line, counter)
        if progress is not None and counter.line % _REPORT_EVERY == 0:
            progress(min(1.0, (before + read) / total), format_bytes(before + read))
    return read


def _skip_line(file: IO[bytes]) -> int:
    """Go to the next line; the bytes that were passed over."""
    passed = 0
    while line := file.readline(MAX_LINE_BYTES):
        passed += len(line)
        if line.endswith(b"\n"):
            break
    return passed


def _count_json(line: bytes, counter: Counter) -> None:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        counter.broken()
        return
    counter.example(value)


def _read_array(file: IO[bytes], size: int, where: str, counter: Counter) -> None:
    """All examples in one JSON array."""
    if size > MAX_ARRAY_BYTES:
        raise BadInput(
            f"{where} is one JSON array of {format_bytes(size)}, and at most {format_bytes(MAX_ARRAY_BYTES)} are "
            "held at once; write an example a line (jq -c '.[]')"
        )
    try:
        values = json.load(file)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where} begins as a JSON array and is none ({_reason(error)}); mend the file") from None
    for value in values:
        counter.line += 1
        counter.example(value)


# ---- CSV


def _read_csv(file: IO[bytes], size: int, where: str, counter: Counter, progress: Progress | None) -> float:
    """A row an example, under a line of columns. Of a very long file the beginning is read; its share."""
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
        rows = csv.reader(_known(text))
        header = next(rows, None)
        if not header or not counter.columns(header):
            raise BadInput(
                f"{where} is neither JSONL, Parquet nor a CSV whose first line names columns such as text, prompt "
                f"or input_ids; it begins with {shown(', '.join(header or ()), 80)}"
            )
        for row in _csv_rows(rows, counter):
            counter.line = rows.line_num
            if len(row) == len(header):
                counter.cells(row)
            else:
                counter.broken()
            if counter.seen % _REPORT_EVERY == 0 and file.tell() > MAX_READ_BYTES:
                return file.tell() / size
            if progress is not None and counter.seen % _REPORT_EVERY == 0:
                progress(file.tell() / size, format_bytes(file.tell()))
        return 1.0
    finally:
        csv.field_size_limit(limit)


def _known(text: io.TextIOWrapper) -> Iterator[str]:
    """Lines of a text, each of bounded length; NUL bytes are no text."""
    while line := text.readline(MAX_LINE_BYTES):
        yield line.replace("\0", "\ufffd")


def _csv_rows(rows: Any, counter: Counter) -> Iterator[list[str]]:
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            counter.line = rows.line_num
            counter.broken()
            continue
        if row:
            yield row


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or getattr(error, "msg", None) or type(error).__name__)
