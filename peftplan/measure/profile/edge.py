"""Runs at the edge of a card: the largest that is said to fit, and the smallest that is said not to."""

from __future__ import annotations

from peftplan import planner
from peftplan.errors import BadInput
from peftplan.request import Request

UNDER, OVER = "under", "over"
FIELDS = ("micro_batch", "seq_len", "rank")
MAX_COUNT = 2**20  # of a field: no card holds so much


def at_edge(request: Request, field: str, side: str, step: int = 1) -> Request:
    """The request with `field` at the last multiple of `step` that fits its GPU, or at the first that does not.

    By bisection: what fits also fits with less.
    """
    if request.gpu is None:
        raise BadInput(f"edge: {side} asks for the edge of a card, and the GPU is not in the catalogue; give gpu")

    def fits(count: int) -> bool:
        report = planner.estimate(request.model_copy(update={field: count * step}))
        assert report.gpu is not None
        return report.gpu.fits

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
        if high * step > MAX_COUNT:
            raise BadInput(f"edge: {field} has no edge on {request.gpu} below {MAX_COUNT}; vary something else")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if side == UNDER and not low:
        raise BadInput(f"edge: under: not even {field} {step} fits {request.gpu}; take a smaller model")
    return request.model_copy(update={field: (low if side == UNDER else high) * step})
