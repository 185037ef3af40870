"""peftplan: what a fine-tuning run needs and costs, from a model's config, before a GPU is rented."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftplan.advice.fit import fit
    from peftplan.advice.recommend import recommend
    from peftplan.engines import compare, estimate, merge
    from peftplan.merging.options import Merging
    from peftplan.report import Report
    from peftplan.request import Request
    from peftplan.serving.options import Serving
    from peftplan.serving.service import serve
    from peftplan.sweeps import sweep

__version__ = "0.1.0"
__all__ = [
    "Merging",
    "Report",
    "Request",
    "Serving",
    "__version__",
    "compare",
    "estimate",
    "fit",
    "merge",
    "recommend",
    "serve",
    "sweep",
]

_HOMES = {
    "Request": "peftplan.request",
    "Report": "peftplan.report",
    "estimate": "peftplan.engines",
    "compare": "peftplan.engines",
    "merge": "peftplan.engines",
    "Merging": "peftplan.merging.options",
    "fit": "peftplan.advice.fit",
    "recommend": "peftplan.advice.recommend",
    "serve": "peftplan.serving.service",
    "Serving": "peftplan.serving.options",
    "sweep": "peftplan.sweeps",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that `import peftplan` stays light."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'peftplan' has no attribute {name!r}")
