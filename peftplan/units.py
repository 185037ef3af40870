"""Units: the only place that knows powers of 1024 and of 1000.

Bytes are integers inside the package and become GiB (2**30) only when printed.
"""

KIB = 1024
MIB = 1024**2
GIB = 1024**3
GB = 10**9  # the unit printed on a GPU's box; never used for measured memory
MILLION = 10**6
BILLION = 10**9


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def format_bytes(num_bytes: int) -> str:
    """`num_bytes` as GiB, MiB, KiB or bytes, whichever reads best: `12.34 GiB`."""
    size = abs(num_bytes)
    if size >= GIB // 10:
        return f"{num_bytes / GIB:,.2f} GiB"
    if size >= MIB // 10:
        return f"{num_bytes / MIB:,.2f} MiB"
    if size >= KIB:
        return f"{num_bytes / KIB:,.1f} KiB"
    return f"{num_bytes} B"


def format_count(count: int) -> str:
    """A number of parameters, tokens or examples for people: `8.03 B`, `41.94 M`, `512`."""
    if count >= BILLION:
        return f"{count / BILLION:,.2f} B"
    if count >= MILLION:
        return f"{count / MILLION:,.2f} M"
    if count >= 10_000:
        return f"{count / 1000:,.1f} k"
    return str(count)
