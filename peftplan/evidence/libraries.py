"""The library versions of a row: those it names, and for a library it does not name the one of its day."""

from __future__ import annotations

import re

from peftplan.evidence.releases import current_release
from peftplan.evidence.tables import Row
from peftplan.versions import LIBRARIES, installed_versions

UNKNOWN_DAY = "2023-01-01"


def day_of(row: Row) -> str:
    """The day in a commit date or in a session's name, as ISO 8601 has it."""
    found = re.search(r"\d{4}-\d{2}-\d{2}", row.get("commit_date", ""))
    return found[0] if found else UNKNOWN_DAY


def libraries(row: Row) -> dict[str, str]:
    """`torch=2.4.1;peft=0.12.0`, or the same as JSON, as names and versions."""
    pairs = re.findall(r'"?([A-Za-z][\w-]*)"?\s*[=:]=?\s*"?(\d[\w.+]*)', row.get("software", ""))
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def version_fields(row: Row) -> dict[str, str]:
    """What a request says of versions: releases that peftplan knows, the nearest to the row's own."""
    named = libraries(row)
    day = day_of(row)
    for library in LIBRARIES:
        current = current_release(library, day)
        if library not in named and current is not None:
            named[library] = current
    return installed_versions(named)
