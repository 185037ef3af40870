"""Fetches a price list's text from a file or an address: bounded, whole or not at all."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from http.client import HTTPException, HTTPMessage
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from peftplan.catalog.prices import MAX_FILE_BYTES
from peftplan.catalog.prices_import import provider_name
from peftplan.errors import BadInput, MachineLacks, NotFound, shown
from peftplan.units import format_bytes

if TYPE_CHECKING:
    from urllib.request import Request

Progress = Callable[[float, str], None]

_TIMEOUT_S = 30.0
_CHUNK_BYTES = 2**18
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# Names of files that say nothing of a provider: their folder does.
_PLAIN_STEMS = ("vms", "catalog", "prices", "instances")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A list's lines, whose prices they seem to be, and the day they are of."""

    lines: io.StringIO
    provider: str | None
    date: str
    source: str


def fetch(source: str, progress: Progress | None = None) -> Fetched:
    """The text behind a path or an http(s) address; one line of error where there is none."""
    if _SCHEME.match(source):
        content, name = _from_address(source, progress), urlsplit(source).path
        day = datetime.now(tz=timezone.utc)
        named = source
    else:
        path = Path(source).expanduser()
        content, name = _from_file(path, progress), str(path.absolute())
        day = datetime.fromtimestamp(path.stat().st_mtime, tz=timezone.utc)
        named = path.name
    if content[:2] in (b"PK", b"\x1f\x8b"):
        raise BadInput(f"{shown(source)} is packed; unpack it and give the CSV inside")
    text = content.decode("utf-8", errors="replace")  # what is no text is told line by line
    return Fetched(io.StringIO(text, newline=""), _provider_of(name), day.date().isoformat(), named)


def _provider_of(path: str) -> str | None:
    """`catalogs/v8/aws/vms.csv` and `aws.csv` are of aws."""
    parts = PurePosixPath(unquote(path).replace("\\", "/"))
    stem = parts.stem.lower()
    try:
        return provider_name(parts.parent.name if stem in _PLAIN_STEMS else stem)
    except ValueError:
        return None


def _from_file(path: Path, progress: Progress | None) -> bytes:
    name = shown(str(path))
    try:
        if path.is_dir():
            raise BadInput(f"--from {name} is a folder; give the CSV in it")
        if path.exists() and not path.is_file():
            raise BadInput(f"--from {name} is no ordinary file; give another")
        with path.open("rb") as file:
            return _bounded(file, path.stat().st_size, name, progress)
    except FileNotFoundError:
        raise NotFound(f"--from {name} does not exist; give a CSV of SkyPilot or gpuhunt, or its address") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadInput(f"--from {name} cannot be read ({reason}); give another") from None


def _from_address(address: str, progress: Progress | None) -> bytes:
    import urllib.error
    import urllib.request

    class _StayOnTheWeb(urllib.request.HTTPRedirectHandler):
        """Follows redirections to http and https only."""

        def redirect_request(
            self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
        ) -> Request | None:
            if urlsplit(newurl).scheme not in ("http", "https"):
                raise BadInput(f"--from {shown(address)} leads to {shown(newurl)}, which is no web address")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    if urlsplit(address).scheme.lower() not in ("http", "https"):
        raise BadInput(f"--from {shown(address)} is no web address; give one of http or https, or a file")
    asked = urllib.request.Request(address, headers={"User-Agent": "peftplan"})  # noqa: S310 - checked above
    try:
        with urllib.request.build_opener(_StayOnTheWeb).open(asked, timeout=_TIMEOUT_S) as answer:
            length = answer.headers.get("Content-Length") or ""
            return _bounded(answer, int(length) if length.isdigit() else 0, shown(address), progress)
    except urllib.error.HTTPError as error:
        raise NotFound(f"--from {shown(address)} answers {error.code}; check the address") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise MachineLacks(
            f"--from {shown(address)} cannot be reached ({shown(str(reason))}); give a file instead"
        ) from None


def _bounded(stream: IO[bytes], size: int, name: str, progress: Progress | None) -> bytes:
    """All of a stream, or BadInput where it is longer than a price list is."""
    parts, got = [], 0
    while chunk := stream.read(_CHUNK_BYTES):
        got += len(chunk)
        if got > MAX_FILE_BYTES:
            raise BadInput(f"--from {name} is longer than {format_bytes(MAX_FILE_BYTES)}, which no price list is")
        parts.append(chunk)
        if progress is not None:
            progress(min(1.0, got / size) if size else 0.0, format_bytes(got))
    return b"".join(parts)
